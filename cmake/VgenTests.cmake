# vgen_add_tests(ROOM SOURCES a_test.cpp ... DEPS vgen::room ... [TORCH] [CUDA] [SLOW])
#   One executable test_ROOM from tests/ROOM/. Without TORCH each Catch2 case is a CTest entry.
#   With it loading LibTorch costs a second, so the whole executable is one entry. A case of the
#   former kind that finds something missing prints "skipped here: WHY" and returns: CTest shows it.
#   CUDA: the executable has [cuda] cases, which begin with test::lacks_cuda(). They are the entry
#   ROOM_cuda, which CTest shows as skipped where there is no device; `ctest -V` says why.
#   SLOW: the executable has [slow] cases; they run with `ctest -C slow` only.
find_package(Catch2 2.13 REQUIRED)
include(Catch)

function(vgen_add_tests room)
  cmake_parse_arguments(TEST "TORCH;CUDA;SLOW" "" "SOURCES;DEPS" ${ARGN})
  list(TRANSFORM TEST_SOURCES PREPEND ${room}/)
  add_executable(test_${room} ${TEST_SOURCES})
  target_link_libraries(test_${room} PRIVATE ${TEST_DEPS} vgen_flags)
  if(TEST_TORCH)
    target_link_libraries(test_${room} PRIVATE vgen_test_torch)
    target_precompile_headers(test_${room} REUSE_FROM vgen_pch)
    set(filter "~[slow]")
    if(TEST_CUDA)
      string(APPEND filter "~[cuda]")
      add_test(NAME ${room}_cuda COMMAND test_${room} "[cuda]~[slow]" -w NoTests)
      set_tests_properties(${room}_cuda PROPERTIES TIMEOUT 900 LABELS "${room};cuda"
                           SKIP_REGULAR_EXPRESSION "skipped: no CUDA device")
    endif()
    add_test(NAME ${room} COMMAND test_${room} ${filter} -w NoTests)
    set_tests_properties(${room} PROPERTIES TIMEOUT 900 LABELS ${room})
  else()
    target_link_libraries(test_${room} PRIVATE vgen_test_support)
    catch_discover_tests(test_${room} TEST_SPEC "~[slow]" TEST_PREFIX "${room}: "
                         PROPERTIES TIMEOUT 300 LABELS ${room}
                         SKIP_REGULAR_EXPRESSION "skipped here:")
  endif()
  if(TEST_SLOW)
    add_test(NAME ${room}_slow COMMAND test_${room} "[slow]" -w NoTests CONFIGURATIONS slow)
    set_tests_properties(${room}_slow PROPERTIES TIMEOUT 3600 LABELS slow)
  endif()
endfunction()
