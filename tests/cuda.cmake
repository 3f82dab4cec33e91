# CUDA without a GPU: the PTX interpreter.
add_library(gpu_ptx STATIC gpu/ptx/gmem.c gpu/ptx/parse.c gpu/ptx/decode.c gpu/ptx/arithmetic.c gpu/ptx/predicate.c
  gpu/ptx/convert.c gpu/ptx/warp.c gpu/ptx/memory.c gpu/ptx/run.c)
target_link_libraries(gpu_ptx PRIVATE steer_flags PUBLIC m)
target_include_directories(gpu_ptx INTERFACE gpu)
# Half conversions and fma by the processor's own instructions: any since 2013 has them. Registers are seen as several types.
set(gpu_options -O3 -march=x86-64-v3 -fno-strict-aliasing -fno-math-errno)
target_compile_options(gpu_ptx PRIVATE ${gpu_options})
# The fake libcublasLt asks the libcudart's for memory.
set_target_properties(gpu_ptx PROPERTIES C_VISIBILITY_PRESET default)
steer_test(gpu ptx gpu_ptx)
