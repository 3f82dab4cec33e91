# models/train at toy size, and tests/removal's detector, statistics and farm.
foreach(group World Parts Stages)
  add_test(NAME train/${group} COMMAND ${STEER_TEST_PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/train/test_train.py ${group})
  set_tests_properties(train/${group} PROPERTIES TIMEOUT 300 LABELS train ENVIRONMENT "OMP_WAIT_POLICY=passive")
endforeach()
