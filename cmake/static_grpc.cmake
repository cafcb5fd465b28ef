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
if(RUBATO_STATIC_protobuf AND RUBATO_STATIC_grpc__ AND RUBATO_STATIC_grpc)
  message(STATUS "gRPC and what it needs: ${rubato_static_count} archives")
  target_link_libraries(rubato_protobuf INTERFACE "${RUBATO_STATIC_protobuf}" z)
  # The closure has circles, and is listed here in the order in which pkg-config gave it.
  target_link_libraries(
    rubato_grpc
    INTERFACE "-Wl,--start-group" ${rubato_static_libraries} "-Wl,--end-group"
  )
else()
  message(WARNING
    "No archives of gRPC and protobuf here: linking the shared libraries. What is built runs on this "
    "machine; for others, run tools/bundle or install libgrpc-dev with its archives.")
  rubato_link_shared_grpc()
endif()
