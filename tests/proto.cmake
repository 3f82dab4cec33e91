steer_test(unit job steer_proto)
steer_test(unit args steer_proto)
steer_test(unit text steer_proto)
