# models/train at toy size, and tests/removal's detector, statistics and farm.
foreach(group World Parts Command Stages)
  add_test(NAME train/${group} COMMAND ${STEER_TEST_PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/train/test_train.py ${group})
  set_tests_properties(train/${group} PROPERTIES TIMEOUT 300 LABELS train ENVIRONMENT "OMP_WAIT_POLICY=passive")
endforeach()
foreach(group Eye Counting)
  add_test(NAME removal/${group} COMMAND ${STEER_TEST_PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/removal/test_removal.py ${group})
  set_tests_properties(removal/${group} PROPERTIES TIMEOUT 300 LABELS train)
endforeach()
add_test(NAME removal/ThroughTheFarm COMMAND ${STEER_TEST_PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/removal/test_removal.py ThroughTheFarm)
set_tests_properties(removal/ThroughTheFarm PROPERTIES TIMEOUT 300 RUN_SERIAL ON LABELS farm
  ENVIRONMENT "STEER_BIN_DIR=${CMAKE_RUNTIME_OUTPUT_DIRECTORY};OMP_WAIT_POLICY=passive")
