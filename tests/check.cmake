# What `-t check` runs once the unit tests are built: all tests but those that have a target of their own or are left to CI. Goldens that
# PITH_GOLDEN_DIR names belong to it.

set(others "bench|example|slow|golden")
if(GOLDENS AND DEFINED ENV{PITH_GOLDEN_DIR})
  set(others "bench|example|slow")
  set(ENV{MAKEFLAGS} "")  # a make inside this one: its jobs are its own
  execute_process(COMMAND ${CMAKE_COMMAND} --build . -t pith_golden -j ${CORES} COMMAND_ERROR_IS_FATAL ANY)
endif()
execute_process(COMMAND ${CTEST} --output-on-failure -j ${CORES} -LE "${others}" RESULT_VARIABLE failed)
if(failed)
  message(FATAL_ERROR "a test failed")
endif()
