# The reference of the C and C++ interfaces, made on request:
#   cmake --build build --target reference    build/reference/html/index.html
find_program(DOXYGEN_EXECUTABLE doxygen)
if(DOXYGEN_EXECUTABLE)
  set(reference "${CMAKE_CURRENT_BINARY_DIR}/reference")
  file(READ "${weightsync_SOURCE}/docs/Doxyfile" text)
  file(GENERATE OUTPUT "${reference}/Doxyfile" CONTENT
    "${text}OUTPUT_DIRECTORY = \"${reference}\"\nPROJECT_NUMBER = ${weightsync_VERSION}\n")
  add_custom_target(reference
    COMMAND "${DOXYGEN_EXECUTABLE}" "${reference}/Doxyfile"
    WORKING_DIRECTORY "${weightsync_SOURCE}"
    COMMENT "Writing the reference to ${reference}/html/index.html" VERBATIM)
endif()
