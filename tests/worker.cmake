steer_test(engine golden steer_worker)
