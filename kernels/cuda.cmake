# What a CUDA build needs (STEER_CUDA=ON): nvcc 13 with its runtime, and cublasLt from the toolkit or from STEER_CUBLASLT_ROOT, a
# folder with include/ and lib/ such as NVIDIA's wheel has. steer_cublaslt brings both to who links it.
set(STEER_CUBLASLT_ROOT "" CACHE PATH "a folder with cublasLt's include/ and lib/, where the toolkit has none")
find_package(CUDAToolkit 13.0 QUIET)
if(NOT CUDAToolkit_FOUND)
  message(FATAL_ERROR "STEER_CUDA=ON: no CUDA toolkit of version 13 was found; put its nvcc on PATH or build with STEER_CUDA=OFF.")
endif()
find_path(STEER_CUBLASLT_INCLUDE cublasLt.h HINTS ${STEER_CUBLASLT_ROOT}/include ${CUDAToolkit_INCLUDE_DIRS} NO_CACHE NO_DEFAULT_PATH)
find_library(STEER_CUBLASLT_LIBRARY NAMES cublasLt libcublasLt.so.13
  HINTS ${STEER_CUBLASLT_ROOT}/lib ${STEER_CUBLASLT_ROOT}/lib64 ${CUDAToolkit_LIBRARY_DIR} NO_CACHE NO_DEFAULT_PATH)
if(NOT STEER_CUBLASLT_INCLUDE OR NOT STEER_CUBLASLT_LIBRARY)
  message(FATAL_ERROR "STEER_CUDA=ON: cublasLt is neither in the CUDA toolkit nor in STEER_CUBLASLT_ROOT='${STEER_CUBLASLT_ROOT}'; give the folder that has its include/ and lib/.")
endif()
add_library(steer_cublaslt INTERFACE)
target_include_directories(steer_cublaslt SYSTEM INTERFACE ${STEER_CUBLASLT_INCLUDE} ${CUDAToolkit_INCLUDE_DIRS})
target_link_libraries(steer_cublaslt INTERFACE ${STEER_CUBLASLT_LIBRARY} ${CUDA_cudart_LIBRARY})
