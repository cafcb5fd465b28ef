# Language, warnings, sanitizers, output folders: what holds for every target of the project.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_C_STANDARD 11)
set(CMAKE_C_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_C_VISIBILITY_PRESET hidden)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)

if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Debug CACHE STRING "Build type" FORCE)
endif()

set(CMAKE_RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/bin")
set(CMAKE_LIBRARY_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/lib")
set(CMAKE_ARCHIVE_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/archive")

if(RUBATO_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  find_program(RUBATO_CCACHE_PROGRAM ccache)
  if(RUBATO_CCACHE_PROGRAM)
    # What one checkout compiled is found again by every other, whatever folder it lies in.
    set(
      rubato_launcher
      "${CMAKE_COMMAND}" -E env "CCACHE_BASEDIR=${CMAKE_SOURCE_DIR}" CCACHE_NOHASHDIR=1
      "${RUBATO_CCACHE_PROGRAM}"
    )
    set(CMAKE_C_COMPILER_LAUNCHER ${rubato_launcher})
    set(CMAKE_CXX_COMPILER_LAUNCHER ${rubato_launcher})
  endif()
endif()

# Paths relative to the root in debug information and in __FILE__: the same binary from any folder.
add_compile_options("-ffile-prefix-map=${CMAKE_SOURCE_DIR}/=" "-ffile-prefix-map=${CMAKE_BINARY_DIR}/=")

# -Wmissing-field-initializers refuses designated initialisers that leave fields at their defaults.
add_compile_options(-Wall -Wextra -Wpedantic -Wshadow -Wno-missing-field-initializers)
add_compile_options(
  "$<$<COMPILE_LANGUAGE:CXX>:-Wnon-virtual-dtor>" "$<$<COMPILE_LANGUAGE:CXX>:-Woverloaded-virtual>"
)
if(RUBATO_WERROR)
  add_compile_options(-Werror)
endif()

if(RUBATO_SANITIZE)
  list(JOIN RUBATO_SANITIZE "," rubato_sanitize_list)
  add_compile_options(
    "-fsanitize=${rubato_sanitize_list}" -fno-sanitize-recover=all -fno-omit-frame-pointer
  )
  add_link_options("-fsanitize=${rubato_sanitize_list}")
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND "thread" IN_LIST RUBATO_SANITIZE)
    # GCC cannot instrument std::atomic_thread_fence and says so at each use.
    add_compile_options(-Wno-tsan)
  endif()
endif()
if(RUBATO_FUZZ)
  if(NOT CMAKE_CXX_COMPILER_ID MATCHES "Clang")
    message(FATAL_ERROR "RUBATO_FUZZ needs clang: configure with `cmake --preset fuzz`.")
  endif()
  # Coverage feedback for all code; the fuzzer's main only in fuzz targets.
  add_compile_options(-fsanitize=fuzzer-no-link)
  add_link_options(-fsanitize=fuzzer-no-link)
endif()
