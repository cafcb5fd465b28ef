# Archives of gRPC, protobuf and what they need, for binaries that are carried to another machine.
# pkg-config lists the closure (`--static`); each -lNAME that has an archive is taken from it, the
# rest (libm, libdl, libpthread, systemd...) stays shared.

set(rubato_static_search ${RUBATO_GRPC_STATIC_LIBRARY_DIRS} ${RUBATO_GRPC_LIBDIR})
set(rubato_static_libraries "")
set(rubato_static_count 0)
foreach(name IN LISTS RUBATO_GRPC_STATIC_LIBRARIES)
  if(name MATCHES "^(c|m|dl|rt|pthread|atomic|systemd|gcc_s|gcc|stdc\\+\\+)$")
    list(APPEND rubato_static_libraries ${name})
    continue()
  endif()
  string(MAKE_C_IDENTIFIER "RUBATO_STATIC_${name}" variable)
  find_library(${variable} "lib${name}.a" HINTS ${rubato_static_search})
  mark_as_advanced(${variable})
  if(${variable})
    list(APPEND rubato_static_libraries "${${variable}}")
    math(EXPR rubato_static_count "${rubato_static_count} + 1")
  else()
    list(APPEND rubato_static_libraries ${name})
  endif()
endforeach()
if(NOT RUBATO_STATIC_protobuf OR NOT RUBATO_STATIC_grpc__ OR NOT RUBATO_STATIC_grpc)
  message(FATAL_ERROR
    "No archives of gRPC and protobuf here (libgrpc++.a, libgrpc.a, libprotobuf.a). "
    "Run tools/bootstrap, or set RUBATO_STATIC_GRPC=OFF.")
endif()
message(STATUS "gRPC and what it needs: ${rubato_static_count} archives")
target_link_libraries(rubato_protobuf INTERFACE "${RUBATO_STATIC_protobuf}" z)
# The closure has circles, and is listed here in the order in which pkg-config gave it.
target_link_libraries(
  rubato_grpc
  INTERFACE "-Wl,--start-group" ${rubato_static_libraries} "-Wl,--end-group"
)
