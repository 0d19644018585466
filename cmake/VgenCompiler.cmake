# Compiler cache, warnings and sanitizers. Nothing here reaches users of libvgen: all is PRIVATE,
# through the interface target vgen_flags.
find_program(VGEN_CCACHE ccache)
if(VGEN_CCACHE)
  # base_dir and no hash_dir: a second clone hits the cache. The sloppiness is what precompiled
  # headers need; -fpch-preprocess lets ccache see through them.
  set(launcher ${CMAKE_COMMAND} -E env CCACHE_BASEDIR=${CMAKE_SOURCE_DIR} CCACHE_NOHASHDIR=1
      CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime
      ${VGEN_CCACHE})
  set(CMAKE_CXX_COMPILER_LAUNCHER ${launcher})
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${launcher})
endif()

# -fPIC everywhere, tests and apps too: objects of one precompiled header need equal settings.
# -Wno-restrict, -Wno-stringop-overflow: g++ 12 warns falsely about std::string::append, assign and
# insert (GCC bug 105329).
add_library(vgen_flags INTERFACE)
target_compile_options(vgen_flags INTERFACE
  $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-fPIC>
  $<$<COMPILE_LANGUAGE:CXX>:-fPIC;-Wall;-Wextra;-Wno-unused-parameter>
  $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<CXX_COMPILER_ID:GNU>>:-fpch-preprocess;-Wno-restrict;-Wno-stringop-overflow>
  $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<BOOL:${VGEN_WERROR}>>:-Werror>)
if(VGEN_SANITIZE)
  set(flags -fsanitize=${VGEN_SANITIZE} -fno-omit-frame-pointer)
  if(VGEN_SANITIZE MATCHES "undefined")
    list(APPEND flags -fno-sanitize-recover=undefined)
  endif()
  # Sanitizers must see every object of the program: the one flag that is set globally.
  add_compile_options("$<$<COMPILE_LANGUAGE:CXX>:${flags}>")
  add_link_options(${flags})
endif()
