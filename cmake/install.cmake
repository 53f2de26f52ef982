# What goes where. Components are what the packages are made of:
#
#   runtime      libweightsync.so.0.1.0 and its link by the ABI number
#   development  headers, archive, the linker's link, pkg-config and CMake files
#   tools        the command, its manual and completions
#   python       the Python package, which takes the system's library
#   debug        debug information; only on request
include(CMakePackageConfigHelpers)

set(to_cmake "${CMAKE_INSTALL_LIBDIR}/cmake/weightsync")

install(FILES "${weightsync_SO}" "${weightsync_STAGE}/libweightsync.so.${weightsync_ABI}"
  DESTINATION "${CMAKE_INSTALL_LIBDIR}" COMPONENT runtime)
# Whatever has machine code in it comes with the licences of that code.
if(NOT weightsync_FOR_DEBIAN)
  foreach(component runtime development tools)
    install(FILES "${weightsync_SOURCE}/LICENSE" "${weightsync_SOURCE}/THIRD_PARTY_NOTICES"
      DESTINATION "${CMAKE_INSTALL_DOCDIR}" COMPONENT ${component})
  endforeach()
endif()

install(FILES "${weightsync_STAGE}/libweightsync.so" "${weightsync_ARCHIVE}"
  DESTINATION "${CMAKE_INSTALL_LIBDIR}" COMPONENT development)
install(FILES "${weightsync_SOURCE}/include/weightsync.h"
  DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" COMPONENT development)
install(DIRECTORY "${weightsync_SOURCE}/bindings/cpp/include/weightsync"
  DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" COMPONENT development FILES_MATCHING PATTERN "*.hpp")

# From the folder of weightsync.pc up to the prefix, so that the tree may move.
if(IS_ABSOLUTE "${CMAKE_INSTALL_LIBDIR}")
  set(weightsync_PC_PREFIX "${CMAKE_INSTALL_PREFIX}")
  set(weightsync_PC_LIBDIR "${CMAKE_INSTALL_LIBDIR}")
else()
  file(RELATIVE_PATH up "/prefix/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/prefix")
  string(REGEX REPLACE "/$" "" up "${up}")
  set(weightsync_PC_PREFIX "\${pcfiledir}/${up}")
  set(weightsync_PC_LIBDIR "\${prefix}/${CMAKE_INSTALL_LIBDIR}")
endif()
if(IS_ABSOLUTE "${CMAKE_INSTALL_INCLUDEDIR}")
  set(weightsync_PC_INCLUDEDIR "${CMAKE_INSTALL_INCLUDEDIR}")
else()
  set(weightsync_PC_INCLUDEDIR "\${prefix}/${CMAKE_INSTALL_INCLUDEDIR}")
endif()
list(TRANSFORM weightsync_STATIC_LIBRARIES PREPEND "-l" OUTPUT_VARIABLE flags)
list(JOIN flags " " weightsync_PC_PRIVATE)
configure_file("${CMAKE_CURRENT_LIST_DIR}/weightsync.pc.in"
  "${CMAKE_CURRENT_BINARY_DIR}/weightsync.pc" @ONLY)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/weightsync.pc"
  DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig" COMPONENT development)

configure_package_config_file("${CMAKE_CURRENT_LIST_DIR}/weightsyncConfig.cmake.in"
  "${CMAKE_CURRENT_BINARY_DIR}/weightsyncConfig.cmake"
  INSTALL_DESTINATION "${to_cmake}"
  PATH_VARS CMAKE_INSTALL_INCLUDEDIR CMAKE_INSTALL_LIBDIR)
# Until 1.0 a minor version may break what compiled before.
if(weightsync_VERSION VERSION_LESS 1.0.0)
  set(compatibility SameMinorVersion)
else()
  set(compatibility SameMajorVersion)
endif()
write_basic_package_version_file("${CMAKE_CURRENT_BINARY_DIR}/weightsyncConfigVersion.cmake"
  VERSION ${weightsync_VERSION} COMPATIBILITY ${compatibility})
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/weightsyncConfig.cmake"
  "${CMAKE_CURRENT_BINARY_DIR}/weightsyncConfigVersion.cmake"
  DESTINATION "${to_cmake}" COMPONENT development)

if(WEIGHTSYNC_COMMAND)
  install(PROGRAMS "${weightsync_PROGRAM}"
    DESTINATION "${CMAKE_INSTALL_BINDIR}" COMPONENT tools)
  install(DIRECTORY "${weightsync_MANUAL}/"
    DESTINATION "${CMAKE_INSTALL_MANDIR}/man1" COMPONENT tools FILES_MATCHING PATTERN "*.1.gz")
  install(FILES "${weightsync_COMPLETIONS}/bash" RENAME weightsync
    DESTINATION "${CMAKE_INSTALL_DATADIR}/bash-completion/completions" COMPONENT tools)
  install(FILES "${weightsync_COMPLETIONS}/zsh" RENAME _weightsync
    DESTINATION "${CMAKE_INSTALL_DATADIR}/zsh/site-functions" COMPONENT tools)
  install(FILES "${weightsync_COMPLETIONS}/fish" RENAME weightsync.fish
    DESTINATION "${CMAKE_INSTALL_DATADIR}/fish/vendor_completions.d" COMPONENT tools)
endif()

set(WEIGHTSYNC_PYTHONDIR "lib/python3/dist-packages" CACHE STRING
  "Where the component `python` goes, below the prefix")
install(DIRECTORY "${weightsync_SOURCE}/bindings/python/src/weightsync"
  DESTINATION "${WEIGHTSYNC_PYTHONDIR}" COMPONENT python EXCLUDE_FROM_ALL
  FILES_MATCHING PATTERN "*.py" PATTERN "py.typed"
  PATTERN "lib" EXCLUDE PATTERN "__pycache__" EXCLUDE)
set(dist_info "${CMAKE_CURRENT_BINARY_DIR}/weightsync-${weightsync_VERSION}.dist-info")
configure_file("${CMAKE_CURRENT_LIST_DIR}/METADATA.in" "${dist_info}/METADATA" @ONLY)
file(WRITE "${dist_info}/INSTALLER" "cmake\n")
install(DIRECTORY "${dist_info}"
  DESTINATION "${WEIGHTSYNC_PYTHONDIR}" COMPONENT python EXCLUDE_FROM_ALL)

if(CMAKE_STRIP AND CMAKE_OBJCOPY)
  install(FILES "${weightsync_SO}.debug"
    DESTINATION "${CMAKE_INSTALL_LIBDIR}/.debug" COMPONENT debug EXCLUDE_FROM_ALL)
endif()
