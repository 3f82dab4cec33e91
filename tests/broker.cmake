steer_test(unit queue steer_broker)
steer_test(unit store steer_broker)
