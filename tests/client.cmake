# libsteer exports the functions that steer.h declares: all of them and nothing else.
add_test(NAME client/exports COMMAND sh -ec [[
  grep -o '\bsteer_[a-z_0-9]*(' "$1" | tr -d '(' | sort -u > declared
  nm -D --defined-only "$2" | sed 's/.* //' | sort -u > exported
  test -s exported && diff declared exported]] sh ${CMAKE_SOURCE_DIR}/client/include/steer.h $<TARGET_FILE:steer_client>)
steer_test(unit client steer_client PkgConfig::ZMQ)
steer_test(unit pb_json steer_pb_json)
