steer_test(kernel kernels steer_kernels)
