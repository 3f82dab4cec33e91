steer_test(engine golden steer_worker)
steer_test(engine tokenizer steer_worker)
steer_test(unit recipe steer_worker)
steer_test(unit sampler steer_worker)
