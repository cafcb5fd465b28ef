# The functions that folders use to declare what they build. Sources are always listed by name.
#
#   rubato_library(NAME base SRCS a.cc HDRS a.h DEPS x y)      target rubato_base, alias rubato::base
#   rubato_executable(NAME rubato SRCS main.cc DEPS ...)       <build>/bin/rubato
#   rubato_test(NAME x_test SRCS x_test.cc DEPS ... LABELS unit)
#   rubato_proto(NAME control_proto PROTO control/v1/control.proto [GRPC])
#   rubato_fuzzer(NAME x_fuzz SRCS x_fuzz.cc DEPS ... CORPUS dir)
#   rubato_no_sanitize(target...)                              a library that is preloaded

include_guard(GLOBAL)

# What the sanitizer passes and the fuzz pass build.
add_custom_target(unit_tests)
add_custom_target(fuzzers)

# A static library, or an interface library where there are no sources. INTERFACE_DEPS are needed
# only by those who include the headers.
function(rubato_library)
  cmake_parse_arguments(arg "" "NAME" "SRCS;HDRS;DEPS" ${ARGN})
  set(target "rubato_${arg_NAME}")
  if(arg_SRCS)
    add_library(${target} STATIC ${arg_SRCS} ${arg_HDRS})
    target_include_directories(${target} PUBLIC "${CMAKE_SOURCE_DIR}" "${CMAKE_BINARY_DIR}/generated")
    target_link_libraries(${target} PUBLIC ${arg_DEPS})
  else()
    add_library(${target} INTERFACE ${arg_HDRS})
    target_include_directories(
      ${target} INTERFACE "${CMAKE_SOURCE_DIR}" "${CMAKE_BINARY_DIR}/generated"
    )
    target_link_libraries(${target} INTERFACE ${arg_DEPS})
  endif()
  add_library(rubato::${arg_NAME} ALIAS ${target})
endfunction()

function(rubato_executable)
  cmake_parse_arguments(arg "" "NAME" "SRCS;HDRS;DEPS" ${ARGN})
  add_executable(${arg_NAME} ${arg_SRCS} ${arg_HDRS})
  target_include_directories(
    ${arg_NAME} PRIVATE "${CMAKE_SOURCE_DIR}" "${CMAKE_BINARY_DIR}/generated"
  )
  target_link_libraries(${arg_NAME} PRIVATE ${arg_DEPS})
  if(RUBATO_STATIC_GRPC)
    # tools/bundle puts the libraries that have no archives there. DT_RPATH, not RUNPATH: they need
    # each other, and only DT_RPATH holds for what a library needs in turn.
    set_target_properties(${arg_NAME} PROPERTIES BUILD_RPATH "$ORIGIN/../lib/deps")
    target_link_options(${arg_NAME} PRIVATE "-Wl,--disable-new-dtags")
  endif()
endfunction()

# Environment and limits that every test gets, whatever it is written in.
function(rubato_test_properties name)
  cmake_parse_arguments(
    arg "RUN_SERIAL" "TIMEOUT;RESOURCE_LOCK;SKIP_CODE" "LABELS;ENVIRONMENT" ${ARGN}
  )
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 120)
  endif()
  if(NOT arg_LABELS)
    set(arg_LABELS unit)
  endif()
  set(
    environment
    "RUBATO_SOURCE_DIR=${CMAKE_SOURCE_DIR}"
    "RUBATO_BUILD_DIR=${CMAKE_BINARY_DIR}"
    "ASAN_OPTIONS=detect_leaks=1:strict_string_checks=1:detect_stack_use_after_return=1"
    "UBSAN_OPTIONS=print_stacktrace=1"
    "TSAN_OPTIONS=second_deadlock_stack=1:suppressions=${CMAKE_SOURCE_DIR}/tests/tsan.supp"
    ${arg_ENVIRONMENT}
  )
  set_tests_properties(
    ${name}
    PROPERTIES
      TIMEOUT ${arg_TIMEOUT}
      LABELS "${arg_LABELS}"
      ENVIRONMENT "${environment}"
  )
  if(arg_SKIP_CODE)
    set_tests_properties(${name} PROPERTIES SKIP_RETURN_CODE ${arg_SKIP_CODE})
  endif()
  if(arg_RUN_SERIAL)
    set_tests_properties(${name} PROPERTIES RUN_SERIAL ON)
  endif()
  if(arg_RESOURCE_LOCK)
    set_tests_properties(${name} PROPERTIES RESOURCE_LOCK ${arg_RESOURCE_LOCK})
  endif()
endfunction()

# A GoogleTest executable with one ctest entry. NEEDS are targets that must be built first because
# the test starts or loads them. RUBATO_SOURCE_DIR and RUBATO_BUILD_DIR are given as definitions
# (strings) and in the environment, so that a test runs from any folder.
function(rubato_test)
  cmake_parse_arguments(
    arg "RUN_SERIAL;NO_MAIN" "NAME;TIMEOUT;RESOURCE_LOCK" "SRCS;DEPS;LABELS;ENVIRONMENT;NEEDS;ARGS"
    ${ARGN}
  )
  add_executable(${arg_NAME} ${arg_SRCS})
  target_include_directories(
    ${arg_NAME} PRIVATE "${CMAKE_SOURCE_DIR}" "${CMAKE_BINARY_DIR}/generated"
  )
  target_compile_definitions(
    ${arg_NAME}
    PRIVATE RUBATO_SOURCE_DIR="${CMAKE_SOURCE_DIR}" RUBATO_BUILD_DIR="${CMAKE_BINARY_DIR}"
  )
  target_link_libraries(${arg_NAME} PRIVATE ${arg_DEPS} GTest::gtest Threads::Threads)
  if(NOT arg_NO_MAIN)
    target_link_libraries(${arg_NAME} PRIVATE GTest::gtest_main)
  endif()
  set_target_properties(
    ${arg_NAME} PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/bin/tests"
  )
  if(arg_NEEDS)
    add_dependencies(${arg_NAME} ${arg_NEEDS})
  endif()
  if(NOT arg_LABELS OR "unit" IN_LIST arg_LABELS)
    add_dependencies(unit_tests ${arg_NAME})
  endif()
  add_test(NAME ${arg_NAME} COMMAND ${arg_NAME} ${arg_ARGS})
  set(serial "")
  if(arg_RUN_SERIAL)
    set(serial RUN_SERIAL)
  endif()
  rubato_test_properties(
    ${arg_NAME}
    ${serial}
    TIMEOUT "${arg_TIMEOUT}"
    RESOURCE_LOCK "${arg_RESOURCE_LOCK}"
    LABELS ${arg_LABELS}
    ENVIRONMENT ${arg_ENVIRONMENT}
  )
endfunction()

# A test that is a Python script (standard library only). It exits with 77 where it cannot run. The
# label python is added: nothing of it is instrumented, so sanitizer passes leave it out.
function(rubato_python_test)
  cmake_parse_arguments(
    arg "RUN_SERIAL" "NAME;SCRIPT;TIMEOUT;RESOURCE_LOCK" "ARGS;LABELS;ENVIRONMENT" ${ARGN}
  )
  cmake_path(ABSOLUTE_PATH arg_SCRIPT BASE_DIRECTORY "${CMAKE_CURRENT_SOURCE_DIR}")
  add_test(NAME ${arg_NAME} COMMAND Python3::Interpreter -B "${arg_SCRIPT}" ${arg_ARGS})
  set(serial "")
  if(arg_RUN_SERIAL)
    set(serial RUN_SERIAL)
  endif()
  rubato_test_properties(
    ${arg_NAME}
    ${serial}
    TIMEOUT "${arg_TIMEOUT}"
    RESOURCE_LOCK "${arg_RESOURCE_LOCK}"
    LABELS ${arg_LABELS} python
    SKIP_CODE 77
    ENVIRONMENT ${arg_ENVIRONMENT}
  )
endfunction()

# Messages, and with GRPC the services, of one .proto file. PROTO is relative to the calling folder.
# Imports and includes go from the root: "proto/control/v1/control.pb.h".
function(rubato_proto)
  cmake_parse_arguments(arg "GRPC" "NAME;PROTO" "DEPS" ${ARGN})
  cmake_path(ABSOLUTE_PATH arg_PROTO BASE_DIRECTORY "${CMAKE_CURRENT_SOURCE_DIR}" NORMALIZE)
  cmake_path(RELATIVE_PATH arg_PROTO BASE_DIRECTORY "${CMAKE_SOURCE_DIR}" OUTPUT_VARIABLE relative)
  string(REGEX REPLACE "\\.proto$" "" stem "${relative}")
  set(out_dir "${CMAKE_BINARY_DIR}/generated")
  set(outputs "${out_dir}/${stem}.pb.cc" "${out_dir}/${stem}.pb.h")
  set(flags "--cpp_out=${out_dir}")
  set(dependency rubato::protobuf)
  if(arg_GRPC)
    list(APPEND outputs "${out_dir}/${stem}.grpc.pb.cc" "${out_dir}/${stem}.grpc.pb.h")
    list(
      APPEND flags "--grpc_out=${out_dir}" "--plugin=protoc-gen-grpc=${RUBATO_GRPC_CPP_PLUGIN}"
    )
    set(dependency rubato::grpc)
  endif()
  file(MAKE_DIRECTORY "${out_dir}")
  add_custom_command(
    OUTPUT ${outputs}
    COMMAND "${RUBATO_PROTOC}" "-I${CMAKE_SOURCE_DIR}" ${flags} "${relative}"
    DEPENDS "${arg_PROTO}" "${RUBATO_PROTOC}"
    WORKING_DIRECTORY "${CMAKE_SOURCE_DIR}"
    COMMENT "Generating ${stem}.pb"
    VERBATIM
  )
  set(target "rubato_${arg_NAME}")
  add_library(${target} STATIC ${outputs})
  # Generated code is not ours to keep free of warnings.
  target_compile_options(${target} PRIVATE -w)
  target_include_directories(${target} SYSTEM PUBLIC "${out_dir}")
  target_link_libraries(${target} PUBLIC ${dependency} ${arg_DEPS})
  add_library(rubato::${arg_NAME} ALIAS ${target})
endfunction()

# One LLVMFuzzerTestOneInput. With RUBATO_FUZZ a libFuzzer program that ctest lets search for
# RUBATO_FUZZ_SECONDS; otherwise a test that replays the corpus (a folder of small files).
set(RUBATO_FUZZ_SECONDS 20 CACHE STRING "Seconds that ctest lets each fuzzer search")
function(rubato_fuzzer)
  cmake_parse_arguments(arg "" "NAME;CORPUS" "SRCS;DEPS" ${ARGN})
  if(arg_CORPUS)
    cmake_path(ABSOLUTE_PATH arg_CORPUS BASE_DIRECTORY "${CMAKE_CURRENT_SOURCE_DIR}")
  endif()
  add_executable(${arg_NAME} ${arg_SRCS})
  target_include_directories(
    ${arg_NAME} PRIVATE "${CMAKE_SOURCE_DIR}" "${CMAKE_BINARY_DIR}/generated"
  )
  target_link_libraries(${arg_NAME} PRIVATE ${arg_DEPS} Threads::Threads)
  set_target_properties(
    ${arg_NAME} PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/bin/fuzz"
  )
  if(RUBATO_FUZZ)
    target_link_options(${arg_NAME} PRIVATE -fsanitize=fuzzer)
    # The first folder receives new inputs: it lies in the build, the checked-in corpus is only read.
    set(found "${CMAKE_BINARY_DIR}/corpus/${arg_NAME}")
    file(MAKE_DIRECTORY "${found}")
    add_test(
      NAME ${arg_NAME}
      COMMAND
        ${arg_NAME} -max_total_time=${RUBATO_FUZZ_SECONDS} -timeout=10 -rss_limit_mb=2048
        -error_exitcode=1 -artifact_prefix=${found}/crash- -print_final_stats=1 "${found}" ${arg_CORPUS}
    )
    math(EXPR limit "${RUBATO_FUZZ_SECONDS} + 120")
  else()
    target_sources(${arg_NAME} PRIVATE "${CMAKE_SOURCE_DIR}/cmake/fuzz_replay.cc")
    add_test(NAME ${arg_NAME} COMMAND ${arg_NAME} ${arg_CORPUS})
    set(limit 120)
  endif()
  add_dependencies(fuzzers ${arg_NAME})
  rubato_test_properties(${arg_NAME} LABELS fuzz TIMEOUT ${limit})
endfunction()

# Takes sanitizers off a library that is loaded into programs which have none themselves.
function(rubato_no_sanitize)
  if(RUBATO_SANITIZE OR RUBATO_FUZZ)
    foreach(target IN LISTS ARGN)
      target_compile_options(${target} PRIVATE -fno-sanitize=all)
      target_link_options(${target} PRIVATE -fno-sanitize=all)
    endforeach()
  endif()
endfunction()
