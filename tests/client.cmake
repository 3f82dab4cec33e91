# libsteer exports steer_* and nothing else.
add_test(NAME client/exports COMMAND sh -c
  "! nm -D --defined-only $<TARGET_FILE:steer_client> | grep -v ' steer_[a-z_]*$'")
steer_test(unit client steer_client PkgConfig::ZMQ)
steer_test(unit pb_json steer_pb_json)
