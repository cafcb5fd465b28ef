# Where the GPU vendors' headers are: targets rubato::cuda_headers and rubato::hip_headers.
#
# Headers only, never a vendor's library: the project builds and tests on machines without a GPU.
# CUDA: a toolkit that is new enough, else what tools/bootstrap unpacked under build/vendor/cuda.
# HIP: the distribution's package.

set(RUBATO_CUDA_VERSION_MIN 13000)

# A candidate counts only if its cuda.h names a version that has every declaration we hook.
function(rubato_cuda_version include_dir out)
  set(${out} 0 PARENT_SCOPE)
  if(EXISTS "${include_dir}/cuda.h")
    file(STRINGS "${include_dir}/cuda.h" line REGEX "^#define CUDA_VERSION [0-9]+" LIMIT_COUNT 1)
    string(REGEX MATCH "[0-9]+" version "${line}")
    if(version)
      set(${out} ${version} PARENT_SCOPE)
    endif()
  endif()
endfunction()

set(RUBATO_CUDA_INCLUDE_DIR "" CACHE PATH "Folder of cuda.h; found by itself when empty")
file(GLOB rubato_cuda_toolkits "/usr/local/cuda/include" "/usr/local/cuda-*/include")
list(SORT rubato_cuda_toolkits COMPARE NATURAL ORDER DESCENDING)
set(
  rubato_cuda_candidates
  ${RUBATO_CUDA_INCLUDE_DIR}
  "$ENV{CUDA_HOME}/include"
  ${rubato_cuda_toolkits}
  "${CMAKE_SOURCE_DIR}/build/vendor/cuda/include"
  "/usr/include"
)
set(rubato_cuda_include "")
foreach(candidate IN LISTS rubato_cuda_candidates)
  rubato_cuda_version("${candidate}" version)
  if(version GREATER_EQUAL RUBATO_CUDA_VERSION_MIN)
    set(rubato_cuda_include "${candidate}")
    break()
  endif()
endforeach()

add_library(rubato_cuda_headers INTERFACE)
add_library(rubato::cuda_headers ALIAS rubato_cuda_headers)
if(rubato_cuda_include)
  set(RUBATO_HAVE_CUDA_HEADERS ON)
  target_include_directories(rubato_cuda_headers SYSTEM INTERFACE "${rubato_cuda_include}")
  message(STATUS "CUDA headers: ${rubato_cuda_include} (CUDA_VERSION ${version})")
else()
  message(FATAL_ERROR
    "No cuda.h with CUDA_VERSION >= ${RUBATO_CUDA_VERSION_MIN} was found. Run tools/bootstrap, "
    "or set RUBATO_CUDA_INCLUDE_DIR.")
endif()

# The static CUDA runtime, for tests of programs that carry it: it finds the driver by dlopen, as
# PyTorch does. Where it is missing, the target is not there.
if(rubato_cuda_include)
  find_library(
    RUBATO_CUDART_STATIC libcudart_static.a
    HINTS "${rubato_cuda_include}/../lib" "${rubato_cuda_include}/../lib64"
    NO_DEFAULT_PATH
  )
  if(RUBATO_CUDART_STATIC AND EXISTS "${rubato_cuda_include}/crt/host_defines.h")
    add_library(rubato_cudart_static INTERFACE)
    add_library(rubato::cudart_static ALIAS rubato_cudart_static)
    target_link_libraries(
      rubato_cudart_static
      INTERFACE rubato_cuda_headers "${RUBATO_CUDART_STATIC}" Threads::Threads ${CMAKE_DL_LIBS} rt
    )
  endif()
endif()

find_path(
  RUBATO_HIP_INCLUDE_DIR hip/hip_runtime_api.h
  HINTS "$ENV{ROCM_PATH}/include" /opt/rocm/include /usr/include
)
add_library(rubato_hip_headers INTERFACE)
add_library(rubato::hip_headers ALIAS rubato_hip_headers)
if(RUBATO_HIP_INCLUDE_DIR)
  set(RUBATO_HAVE_HIP_HEADERS ON)
  target_compile_definitions(rubato_hip_headers INTERFACE __HIP_PLATFORM_AMD__=1)
  if(NOT RUBATO_HIP_INCLUDE_DIR STREQUAL "/usr/include")
    target_include_directories(rubato_hip_headers SYSTEM INTERFACE "${RUBATO_HIP_INCLUDE_DIR}")
  endif()
  message(STATUS "HIP headers: ${RUBATO_HIP_INCLUDE_DIR}")
else()
  message(FATAL_ERROR "hip/hip_runtime_api.h was not found. Run tools/bootstrap.")
endif()
