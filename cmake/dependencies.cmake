# Libraries from the system's packages (tools/bootstrap installs them), under names that do not
# depend on the distribution: rubato::grpc, rubato::protobuf, rubato::yaml, rubato::log,
# rubato::json, rubato::cli11, rubato::prometheus, rubato::civetweb, rubato::crypto,
# rubato::curl, rubato::sqlite.

set(THREADS_PREFER_PTHREAD_FLAG ON)
find_package(Threads REQUIRED)
find_package(PkgConfig REQUIRED)
find_package(Python3 3.9 COMPONENTS Interpreter REQUIRED)

function(rubato_find package)
  find_package(${package} QUIET ${ARGN})
  if(NOT ${package}_FOUND)
    message(FATAL_ERROR "${package} was not found. Run tools/bootstrap, then configure again.")
  endif()
endfunction()

rubato_find(GTest)
rubato_find(benchmark)
rubato_find(fmt CONFIG)
rubato_find(spdlog CONFIG)
rubato_find(yaml-cpp CONFIG)
rubato_find(nlohmann_json CONFIG)
rubato_find(CLI11 CONFIG)
rubato_find(prometheus-cpp CONFIG)
rubato_find(Protobuf)
rubato_find(CURL)

add_library(rubato_log INTERFACE)
target_link_libraries(rubato_log INTERFACE spdlog::spdlog fmt::fmt)
add_library(rubato::log ALIAS rubato_log)

add_library(rubato_json INTERFACE)
target_link_libraries(rubato_json INTERFACE nlohmann_json::nlohmann_json)
add_library(rubato::json ALIAS rubato_json)

add_library(rubato_cli11 INTERFACE)
target_link_libraries(rubato_cli11 INTERFACE CLI11::CLI11)
add_library(rubato::cli11 ALIAS rubato_cli11)

add_library(rubato_prometheus INTERFACE)
target_link_libraries(rubato_prometheus INTERFACE prometheus-cpp::pull prometheus-cpp::core)
add_library(rubato::prometheus ALIAS rubato_prometheus)

# libcurl stays a shared library (its own closure has no archives) and uses the system's OpenSSL.
# Where gRPC brings OpenSSL as an archive, the program must not lend its copy to libcurl.
add_library(rubato_curl INTERFACE)
target_link_libraries(rubato_curl INTERFACE CURL::libcurl)
if(RUBATO_STATIC_GRPC)
  target_link_options(rubato_curl INTERFACE "-Wl,--exclude-libs,ALL")
endif()
add_library(rubato::curl ALIAS rubato_curl)

# The web server of prometheus-cpp's pull library, whose package brings it.
find_path(RUBATO_CIVETWEB_INCLUDE CivetServer.h)
find_library(RUBATO_CIVETWEB_CPP civetweb-cpp)
find_library(RUBATO_CIVETWEB civetweb)
mark_as_advanced(RUBATO_CIVETWEB_INCLUDE RUBATO_CIVETWEB_CPP RUBATO_CIVETWEB)
if(NOT RUBATO_CIVETWEB_INCLUDE OR NOT RUBATO_CIVETWEB_CPP OR NOT RUBATO_CIVETWEB)
  message(FATAL_ERROR "civetweb was not found. Run tools/bootstrap, then configure again.")
endif()
add_library(rubato_civetweb INTERFACE)
target_link_libraries(rubato_civetweb INTERFACE ${RUBATO_CIVETWEB_CPP} ${RUBATO_CIVETWEB})
add_library(rubato::civetweb ALIAS rubato_civetweb)

# A shared library, which tools/bundle collects: the system's package, and so its fixes.
rubato_find(SQLite3)
add_library(rubato_sqlite INTERFACE)
target_link_libraries(rubato_sqlite INTERFACE SQLite::SQLite3)
add_library(rubato::sqlite ALIAS rubato_sqlite)

rubato_find(OpenSSL)
add_library(rubato_crypto INTERFACE)
target_link_libraries(rubato_crypto INTERFACE OpenSSL::Crypto)
add_library(rubato::crypto ALIAS rubato_crypto)

add_library(rubato_yaml INTERFACE)
if(TARGET yaml-cpp::yaml-cpp)
  target_link_libraries(rubato_yaml INTERFACE yaml-cpp::yaml-cpp)
else()
  target_link_libraries(rubato_yaml INTERFACE yaml-cpp)
endif()
add_library(rubato::yaml ALIAS rubato_yaml)

find_program(RUBATO_PROTOC protoc)
find_program(RUBATO_GRPC_CPP_PLUGIN grpc_cpp_plugin)
if(NOT RUBATO_PROTOC OR NOT RUBATO_GRPC_CPP_PLUGIN)
  message(FATAL_ERROR "protoc or grpc_cpp_plugin was not found. Run tools/bootstrap.")
endif()

# The distributions' CMake configuration for gRPC names the shared libraries only; pkg-config knows
# both kinds, so both builds go through it.
pkg_check_modules(RUBATO_GRPC REQUIRED QUIET grpc++ protobuf)
add_library(rubato_protobuf INTERFACE)
add_library(rubato::protobuf ALIAS rubato_protobuf)
add_library(rubato_grpc INTERFACE)
add_library(rubato::grpc ALIAS rubato_grpc)
target_link_libraries(rubato_protobuf INTERFACE Threads::Threads)
target_link_libraries(rubato_grpc INTERFACE rubato_protobuf)
if(RUBATO_STATIC_GRPC)
  include(${CMAKE_CURRENT_LIST_DIR}/static_grpc.cmake)
else()
  target_link_libraries(rubato_protobuf INTERFACE protobuf)
  # Generated services and gRPC's headers inline abseil's mutex and strings.
  target_link_libraries(
    rubato_grpc INTERFACE grpc++ grpc gpr absl_synchronization absl_strings absl_base
  )
endif()
