steer_test(unit job steer_proto)
