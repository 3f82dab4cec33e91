steer_test(unit queue steer_broker)
