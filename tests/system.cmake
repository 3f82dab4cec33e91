# The real programs, driven from Python; STEER_TEST_PYTHON has pyzmq and protobuf (tests/run makes it).
set(STEER_TEST_PYTHON python3 CACHE STRING "a Python with tests/requirements.txt")
foreach(group Basics CommandLine Deaths DataDirectory)
  add_test(NAME system/${group} COMMAND ${STEER_TEST_PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/system/test_farm.py ${group})
  set_tests_properties(system/${group} PROPERTIES TIMEOUT 600 RUN_SERIAL ON LABELS farm
    ENVIRONMENT "STEER_BIN_DIR=${CMAKE_RUNTIME_OUTPUT_DIRECTORY};OMP_WAIT_POLICY=passive")
endforeach()
add_test(NAME system/protocol COMMAND ${STEER_TEST_PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/system/test_protocol.py)
add_test(NAME system/quickstart COMMAND ${STEER_TEST_PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/system/test_quickstart.py)
set_tests_properties(system/quickstart PROPERTIES TIMEOUT 600 RUN_SERIAL ON LABELS farm
  ENVIRONMENT "STEER_BIN_DIR=${CMAKE_RUNTIME_OUTPUT_DIRECTORY};OMP_WAIT_POLICY=passive")
# Preloaded into the broker by FailingSync.
add_library(fail_fsync SHARED system/fail_fsync.c)
target_link_libraries(fail_fsync PRIVATE ${CMAKE_DL_LIBS})
set_target_properties(fail_fsync PROPERTIES C_VISIBILITY_PRESET default LIBRARY_OUTPUT_DIRECTORY ${CMAKE_RUNTIME_OUTPUT_DIRECTORY})
foreach(group WorkerLink ClientLink Kills Stopped SmallDisk FailingSync Limits NeverReads)
  add_test(NAME faults/${group} COMMAND ${STEER_TEST_PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/system/test_faults.py ${group})
  set_tests_properties(faults/${group} PROPERTIES TIMEOUT 600 RUN_SERIAL ON LABELS farm
    ENVIRONMENT "STEER_BIN_DIR=${CMAKE_RUNTIME_OUTPUT_DIRECTORY};OMP_WAIT_POLICY=passive")
endforeach()
foreach(group Images Families Submitting Commands Interrupts Up Worker)
  add_test(NAME cli/${group} COMMAND ${STEER_TEST_PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/system/test_cli.py ${group})
  set_tests_properties(cli/${group} PROPERTIES TIMEOUT 300 RUN_SERIAL ON LABELS farm
    ENVIRONMENT "STEER_BIN_DIR=${CMAKE_RUNTIME_OUTPUT_DIRECTORY};OMP_WAIT_POLICY=passive")
endforeach()
add_test(NAME system/chaos COMMAND ${STEER_TEST_PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/system/chaos.py)
set_tests_properties(system/chaos PROPERTIES TIMEOUT 300 RUN_SERIAL ON LABELS farm
  ENVIRONMENT "STEER_BIN_DIR=${CMAKE_RUNTIME_OUTPUT_DIRECTORY};OMP_WAIT_POLICY=passive")
foreach(group folders.BadFolders folders.OddFolders folders.ModelFiles folders.Check worker.BadJobs
        worker.Drawing worker.Commands worker.Wire families.Parts families.PixArt families.Flux
        families.Recipes families.Texts)
  string(REPLACE "." ";" group ${group})
  list(POP_FRONT group file)
  add_test(NAME worker/${group} COMMAND ${STEER_TEST_PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/system/test_${file}.py ${group})
  set_tests_properties(worker/${group} PROPERTIES TIMEOUT 600 LABELS worker
    ENVIRONMENT "STEER_BIN_DIR=${CMAKE_RUNTIME_OUTPUT_DIRECTORY};OMP_WAIT_POLICY=passive")
endforeach()
# Load for tests/bench/broker.py; not a test.
add_executable(farm_load bench/farm_load.c)
target_link_libraries(farm_load PRIVATE steer_flags steer_proto PkgConfig::ZMQ)
