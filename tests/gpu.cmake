# The CUDA kernels without a GPU. Their sources are compiled here as plain C++, against the SIMT model
# that watches what they do. Not with the fuzzers, whose flags are clang's alone.
if(NOT STEER_FUZZ)
  enable_language(CXX)
  set(cuda_sources attention.cu conv.cu norm.cu pointwise.cu)
  list(TRANSFORM cuda_sources PREPEND ${CMAKE_SOURCE_DIR}/kernels/cuda/)
  add_library(steer_cuda_simt STATIC ${cuda_sources} gpu/simt/simt.c gpu/simt/memory.c)
  set_source_files_properties(${cuda_sources} PROPERTIES LANGUAGE CXX
    COMPILE_OPTIONS "-std=c++17;-O2;-Wall;-Wextra;-Wno-unknown-pragmas;$<$<BOOL:${STEER_WERROR}>:-Werror>")
  set_source_files_properties(gpu/simt/simt.c gpu/simt/memory.c PROPERTIES COMPILE_OPTIONS -O3)
  target_include_directories(steer_cuda_simt PUBLIC gpu/simt ${CMAKE_SOURCE_DIR}/kernels)
  target_compile_options(steer_cuda_simt PRIVATE "SHELL:-iquote ${CMAKE_SOURCE_DIR}/proto")
  target_link_libraries(steer_cuda_simt PRIVATE m)

  steer_test(gpu simt steer_cuda_simt)
  steer_test(gpu cuda_attention steer_kernels steer_cuda_simt)
  steer_test(gpu cuda_conv steer_cuda_simt)
  steer_test(gpu cuda_pointwise steer_kernels steer_cuda_simt)
  steer_test(gpu cuda_norm steer_kernels steer_cuda_simt)

  find_program(STEER_NVCC nvcc HINTS /usr/local/cuda/bin)
  add_test(NAME gpu/compiled COMMAND ${STEER_TEST_PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/gpu/compiled.py ${STEER_NVCC} 80 90)
  set_tests_properties(gpu/compiled PROPERTIES TIMEOUT 900 LABELS gpu SKIP_RETURN_CODE 77)
endif()
