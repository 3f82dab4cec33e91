steer_test(kernel kernels steer_kernels)
steer_test(kernel attention steer_kernels)
steer_test(kernel int8 steer_kernels)
