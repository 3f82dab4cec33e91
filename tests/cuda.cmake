# CUDA without a GPU: the PTX interpreter, and our own libcudart and libcublasLt under programs that nvcc and the real
# libraries' headers made (gpu/README.md).
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

if(NOT STEER_CUDA)
  add_test(NAME gpu/cuda COMMAND ${CMAKE_COMMAND} -E echo "skipped: built without STEER_CUDA")
  set_tests_properties(gpu/cuda PROPERTIES SKIP_REGULAR_EXPRESSION "^skipped" LABELS gpu)
  return()
endif()

# Stands in for NAME.so.13 where LD_LIBRARY_PATH says so.
function(steer_fake name)
  add_library(fake_${name} SHARED ${ARGN})
  target_link_libraries(fake_${name} PRIVATE steer_flags Threads::Threads)
  target_include_directories(fake_${name} SYSTEM PRIVATE ${STEER_CUBLASLT_INCLUDE} ${CUDAToolkit_INCLUDE_DIRS})
  target_compile_options(fake_${name} PRIVATE ${gpu_options} "SHELL:-iquote ${CMAKE_CURRENT_SOURCE_DIR}/gpu/ptx")
  target_link_options(fake_${name} PRIVATE -Wl,-z,defs -Wl,--version-script=${CMAKE_CURRENT_SOURCE_DIR}/gpu/fake/lib${name}.map)
  set_target_properties(fake_${name} PROPERTIES OUTPUT_NAME ${name} SOVERSION 13 C_VISIBILITY_PRESET default
    LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/fake LINK_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/gpu/fake/lib${name}.map)
endfunction()
steer_fake(cudart gpu/fake/device.c gpu/fake/memory.c gpu/fake/stream.c gpu/fake/graph.c gpu/fake/launch.c)
target_link_libraries(fake_cudart PRIVATE gpu_ptx)
steer_fake(cublasLt gpu/fake/cublaslt.c gpu/fake/gemm.c)
target_link_libraries(fake_cublasLt PRIVATE fake_cudart m)

# steer_nvcc(OBJECT source.cu): its PTX for sm_80 and later, uncompressed, for the fakes to find; linked by a C compiler.
function(steer_nvcc object source)
  add_custom_command(OUTPUT ${object} DEPENDS ${source} DEPFILE ${object}.d VERBATIM
    COMMAND ${CUDAToolkit_NVCC_EXECUTABLE} -std=c++17 -gencode arch=compute_80,code=compute_80 -cudart shared --no-compress
      -I ${CMAKE_SOURCE_DIR}/kernels -I ${CMAKE_SOURCE_DIR}/proto -diag-suppress 128 -Xcompiler=-fPIC,-fno-threadsafe-statics,-fno-exceptions -MD -MF ${object}.d -c ${source} -o ${object})
endfunction()
set(object ${CMAKE_CURRENT_BINARY_DIR}/kernels.cu.o)
steer_nvcc(${object} ${CMAKE_CURRENT_SOURCE_DIR}/gpu/kernels.cu)
add_executable(test_cuda gpu/test_cuda.c gpu/test_cublaslt.c ${object})
target_compile_options(test_cuda PRIVATE "SHELL:-iquote ${CMAKE_CURRENT_SOURCE_DIR}/gpu/ptx")
target_link_libraries(test_cuda PRIVATE steer_flags PkgConfig::CMOCKA steer_cublaslt m ${CMAKE_DL_LIBS})
# No path is built in, so that LD_LIBRARY_PATH alone says which libraries these are.
set_target_properties(test_cuda PROPERTIES SKIP_BUILD_RPATH ON)
add_test(NAME gpu/cuda COMMAND test_cuda)
set_tests_properties(gpu/cuda PROPERTIES TIMEOUT 300 LABELS gpu ENVIRONMENT "LD_LIBRARY_PATH=${CMAKE_BINARY_DIR}/fake")

# The kernels' own tests again (gpu.cmake), on what nvcc made of them; where the kernels are.
if(EXISTS ${CMAKE_SOURCE_DIR}/kernels/cuda/attention.cu)
  set(object ${CMAKE_CURRENT_BINARY_DIR}/attention.cu.o)
  steer_nvcc(${object} ${CMAKE_SOURCE_DIR}/kernels/cuda/attention.cu)
  add_executable(test_cuda_attention_ptx gpu/test_cuda_attention.c gpu/simt_cuda.c ${object})
  target_include_directories(test_cuda_attention_ptx PRIVATE gpu/simt SYSTEM ${CUDAToolkit_INCLUDE_DIRS})
  target_compile_options(test_cuda_attention_ptx PRIVATE -mf16c "SHELL:-iquote ${CMAKE_CURRENT_SOURCE_DIR}/gpu/ptx")
  target_link_libraries(test_cuda_attention_ptx PRIVATE steer_flags PkgConfig::CMOCKA steer_kernels fake_cudart)
  add_test(NAME gpu/cuda_attention_ptx COMMAND test_cuda_attention_ptx)
  set_tests_properties(gpu/cuda_attention_ptx PROPERTIES TIMEOUT 300 LABELS gpu ENVIRONMENT OMP_WAIT_POLICY=passive)
endif()
