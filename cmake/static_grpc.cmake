# Archives of gRPC, protobuf and what they need, for binaries that are carried to another machine.
# pkg-config lists the closure (`--static`); each -lNAME that has an archive is taken from it, the
# rest (libm, libdl, libpthread, systemd...) stays shared.

set(rubato_static_search "${RUBATO_GRPC_STATIC_LIBRARY_DIRS}" "${RUBATO_GRPC_LIBDIR}")
set(rubato_static_libraries "")
foreach(name IN LISTS RUBATO_GRPC_STATIC_LIBRARIES)
  if(name MATCHES "^(c|m|dl|rt|pthread|systemd|gcc_s|gcc|stdc\\+\\+)$")
    list(APPEND rubato_static_libraries ${name})
    continue()
  endif()
  find_library(RUBATO_STATIC_${name} "lib${name}.a" HINTS ${rubato_static_search})
  if(RUBATO_STATIC_${name})
    list(APPEND rubato_static_libraries "${RUBATO_STATIC_${name}}")
  else()
    list(APPEND rubato_static_libraries ${name})
  endif()
endforeach()
find_library(RUBATO_STATIC_protobuf libprotobuf.a)
if(NOT RUBATO_STATIC_protobuf OR NOT "RUBATO_STATIC_grpc++")
  message(FATAL_ERROR "No static libprotobuf.a and libgrpc++.a here: set RUBATO_STATIC_GRPC=OFF.")
endif()
target_link_libraries(rubato_protobuf INTERFACE "${RUBATO_STATIC_protobuf}" z)
target_link_libraries(
  rubato_grpc
  INTERFACE "-Wl,--start-group" ${rubato_static_libraries} "-Wl,--end-group"
)
