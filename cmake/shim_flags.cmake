# How the preloaded libraries are compiled and linked: all of it, and only here.
#
# A preloaded library is a guest in every program: it brings no C++ runtime, exports only the hooked
# names, needs nothing but the C library, and binds the oldest version of each symbol it imports.

include_guard(GLOBAL)

set(
  RUBATO_SHIM_COMPILE_OPTIONS
  -fno-exceptions
  -fno-rtti
  -fno-threadsafe-statics
  -fno-asynchronous-unwind-tables
  -fvisibility=hidden
  -fvisibility-inlines-hidden
  -ftls-model=initial-exec
  # No checked variants of libc calls, no stack protector: they import symbols that end the program.
  -U_FORTIFY_SOURCE
  -fno-stack-protector
  -fno-builtin-printf
)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  list(APPEND RUBATO_SHIM_COMPILE_OPTIONS -fno-gnu-unique)
endif()

set(
  RUBATO_SHIM_LINK_OPTIONS
  -Wl,-z,defs
  -Wl,-z,relro
  -Wl,-z,noexecstack
  -Wl,-Bsymbolic
  -Wl,--exclude-libs,ALL
  -Wl,--build-id
  # In old C libraries dlopen lives here; in new ones this is an empty library.
  -Wl,--push-state,--no-as-needed -l:libdl.so.2 -Wl,--pop-state
)

# Compiles SRCS as they are compiled for a preloaded library.
function(rubato_shim_compile target)
  target_compile_options(
    ${target}
    PRIVATE
      ${RUBATO_SHIM_COMPILE_OPTIONS}
      -include "${CMAKE_SOURCE_DIR}/shim/hooks/glibc_floor.h"
  )
  # The launch path is measured in nanoseconds: optimised in every build type.
  if(CMAKE_BUILD_TYPE STREQUAL "Debug")
    target_compile_options(${target} PRIVATE -O2)
  endif()
  rubato_no_sanitize(${target})
endfunction()

# The library librubato-<vendor>.so from sources and objects, with its version script and the list
# of its exports generated from the hook table.
function(rubato_shim_library)
  cmake_parse_arguments(arg "" "VENDOR" "SRCS;DEPS" ${ARGN})
  string(TOUPPER "${arg_VENDOR}" upper)
  set(target "rubato_${arg_VENDOR}_shim")
  set(table "${CMAKE_SOURCE_DIR}/shim/hooks/hooks.def" "${CMAKE_SOURCE_DIR}/shim/hooks/families.h")
  set(map "${CMAKE_BINARY_DIR}/shim/exports-${arg_VENDOR}.map")
  set(list "${CMAKE_BINARY_DIR}/shim/exports-${arg_VENDOR}.txt")
  file(MAKE_DIRECTORY "${CMAKE_BINARY_DIR}/shim")
  set(preprocess "${CMAKE_C_COMPILER}" -E -P -x c "-I${CMAKE_SOURCE_DIR}" -DRUBATO_VENDOR_${upper})
  add_custom_command(
    OUTPUT "${map}"
    COMMAND ${preprocess} -o "${map}" "${CMAKE_SOURCE_DIR}/shim/hooks/exports.map.in"
    DEPENDS "${CMAKE_SOURCE_DIR}/shim/hooks/exports.map.in" ${table}
    COMMENT "Generating the version script of librubato-${arg_VENDOR}.so"
    VERBATIM
  )
  add_custom_command(
    OUTPUT "${list}"
    COMMAND
      "${CMAKE_COMMAND}" "-DMAP=${map}" "-DLIST=${list}"
      -P "${CMAKE_SOURCE_DIR}/cmake/list_exports.cmake"
    DEPENDS "${map}" "${CMAKE_SOURCE_DIR}/cmake/list_exports.cmake"
    COMMENT "Listing the exports of librubato-${arg_VENDOR}.so"
    VERBATIM
  )
  add_custom_target(rubato_${arg_VENDOR}_exports DEPENDS "${map}" "${list}")

  add_library(${target} SHARED ${arg_SRCS} $<TARGET_OBJECTS:rubato_shim_core_objects>)
  add_dependencies(${target} rubato_${arg_VENDOR}_exports)
  target_include_directories(${target} PRIVATE "${CMAKE_SOURCE_DIR}")
  target_compile_definitions(${target} PRIVATE RUBATO_VENDOR_${upper}=1)
  target_link_libraries(${target} PRIVATE ${arg_DEPS})
  rubato_shim_compile(${target})
  target_link_options(
    ${target} PRIVATE ${RUBATO_SHIM_LINK_OPTIONS} "-Wl,--version-script=${map}"
  )
  # Linked as C: the C++ driver would add its library.
  set_target_properties(
    ${target}
    PROPERTIES OUTPUT_NAME "rubato-${arg_VENDOR}" LINKER_LANGUAGE C LINK_DEPENDS "${map}"
  )
endfunction()
