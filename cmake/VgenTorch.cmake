# The target vgen::torch: LibTorch from the `torch` folder of its PyPI wheel.
#
# It is an imported target of our own, not find_package(Torch): the wheel's package file insists on
# a CUDA toolkit even where only the CPU part is used, and reads its own architecture list.
#   CPU only   libtorch_cpu, libc10
#   CUDA       the same, libtorch_cuda, libc10_cuda, the toolkit's runtime and the wheel's NCCL
if(NOT VGEN_TORCH_DIR)
  file(GLOB candidates ${CMAKE_SOURCE_DIR}/.venv/lib/python3*/site-packages/torch)
  if(candidates)
    list(GET candidates 0 VGEN_TORCH_DIR)
  else()
    execute_process(
      COMMAND python3 -c "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0], end='')"
      OUTPUT_VARIABLE VGEN_TORCH_DIR ERROR_QUIET)
  endif()
endif()
if(NOT EXISTS ${VGEN_TORCH_DIR}/include/torch/csrc/api/include/torch/torch.h)
  message(FATAL_ERROR "No LibTorch at '${VGEN_TORCH_DIR}'. Run scripts/setup.sh, or pass "
                      "-DVGEN_TORCH_DIR=<site-packages>/torch of a torch 2.11 wheel.")
endif()
set(version_parts)
foreach(part MAJOR MINOR PATCH)
  file(STRINGS ${VGEN_TORCH_DIR}/include/torch/headeronly/version.h line
       REGEX "#define TORCH_VERSION_${part} ")
  string(REGEX REPLACE ".* ([0-9]+).*" "\\1" number "${line}")
  list(APPEND version_parts ${number})
endforeach()
list(JOIN version_parts . VGEN_TORCH_VERSION)
if(NOT VGEN_TORCH_VERSION MATCHES "^2\\.11")
  message(FATAL_ERROR "LibTorch ${VGEN_TORCH_VERSION} at ${VGEN_TORCH_DIR}; vgen needs 2.11")
endif()
message(STATUS "vgen: LibTorch ${VGEN_TORCH_VERSION} at ${VGEN_TORCH_DIR}")

function(vgen_import_torch_library name)
  add_library(vgen_${name} SHARED IMPORTED GLOBAL)
  set_target_properties(vgen_${name} PROPERTIES
    IMPORTED_LOCATION ${VGEN_TORCH_DIR}/lib/lib${name}.so)
endfunction()

add_library(vgen_torch INTERFACE)
add_library(vgen::torch ALIAS vgen_torch)
target_include_directories(vgen_torch SYSTEM INTERFACE
  ${VGEN_TORCH_DIR}/include ${VGEN_TORCH_DIR}/include/torch/csrc/api/include)
foreach(name torch_cpu c10)
  vgen_import_torch_library(${name})
  target_link_libraries(vgen_torch INTERFACE vgen_${name})
endforeach()
# at::parallel_for is a template that runs on one thread where its user is compiled without OpenMP.
# The runtime has to be the wheel's own: with a second one there would be two pools of threads.
file(GLOB openmp_runtime ${VGEN_TORCH_DIR}/lib/libgomp*.so*)
list(LENGTH openmp_runtime count)
if(NOT count EQUAL 1)
  message(FATAL_ERROR "expected one libgomp in ${VGEN_TORCH_DIR}/lib, found: '${openmp_runtime}'")
endif()
target_compile_options(vgen_torch INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-fopenmp>)
target_link_libraries(vgen_torch INTERFACE ${openmp_runtime})
if(VGEN_HAS_CUDA)
  foreach(name torch_cuda c10_cuda)
    vgen_import_torch_library(${name})
  endforeach()
  get_filename_component(site_packages ${VGEN_TORCH_DIR} DIRECTORY)
  find_path(VGEN_NCCL_INCLUDE nccl.h PATHS ${site_packages}/nvidia/nccl/include NO_DEFAULT_PATH)
  find_path(VGEN_NCCL_INCLUDE nccl.h REQUIRED)
  find_library(VGEN_NCCL_LIBRARY NAMES libnccl.so.2 nccl
               PATHS ${site_packages}/nvidia/nccl/lib NO_DEFAULT_PATH)
  find_library(VGEN_NCCL_LIBRARY NAMES nccl REQUIRED)
  # libtorch_cuda registers its kernels when loaded: nothing refers to it by symbol.
  target_link_libraries(vgen_torch INTERFACE
    -Wl,--no-as-needed vgen_torch_cuda -Wl,--as-needed vgen_c10_cuda $<LINK_ONLY:CUDA::cudart>)
  # For sources that call CUDA or NCCL themselves; the others compile the same with and without.
  add_library(vgen_cuda INTERFACE)
  target_include_directories(vgen_cuda SYSTEM INTERFACE ${VGEN_NCCL_INCLUDE})
  target_compile_definitions(vgen_cuda INTERFACE USE_CUDA USE_C10D_NCCL)
  add_library(vgen_cuda_libraries INTERFACE)
  target_link_libraries(vgen_cuda_libraries INTERFACE $<LINK_ONLY:CUDA::cudart> ${VGEN_NCCL_LIBRARY})
  target_link_libraries(vgen_cuda INTERFACE CUDA::cudart ${VGEN_NCCL_LIBRARY})
endif()

# One precompiled torch/torch.h for every room that asks for it (see vgen_add_room).
file(WRITE ${CMAKE_BINARY_DIR}/generated/torch_pch.cpp "// holds the precompiled torch/torch.h\n")
add_library(vgen_pch OBJECT ${CMAKE_BINARY_DIR}/generated/torch_pch.cpp)
target_link_libraries(vgen_pch PRIVATE vgen_torch vgen_flags)
target_precompile_headers(vgen_pch PRIVATE <torch/torch.h>)
