# Packages: cpack -G DEB, -G RPM or -G TGZ in the build folder.
#
#   component    Debian               RPM
#   runtime      libweightsync0       libweightsync0
#   development  libweightsync-dev    weightsync-devel
#   tools        weightsync-tools     weightsync-tools
#   python       python3-weightsync   -
#
# Packages of the system go below /usr: configure with
# -DCMAKE_INSTALL_PREFIX=/usr, and for RPM with -DCMAKE_INSTALL_LIBDIR=lib64.
# NCCL and CUDA are looked for at run time and never depended on.

set(runtime "libweightsync${weightsync_ABI}")
set(summary "moves weights from trainer ranks to inference ranks")
set(long_description "\
After every step of reinforcement learning the trainer's new weights must
reach the inference engines, which cut them differently and run in many
replicas. libweightsync describes both layouts, plans once, and executes the
plan every step, from any runtime that can call C, C++ or Python.")

# Who asks for a package of it.
set(CPACK_PACKAGE_NAME weightsync)
set(CPACK_PACKAGE_VENDOR "the weightsync authors")
set(CPACK_PACKAGE_CONTACT "the weightsync authors <weightsync@example.org>"
  CACHE STRING "Maintainer of the packages")
set(CPACK_PACKAGE_VERSION "${weightsync_VERSION}")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "${summary}")
set(CPACK_RESOURCE_FILE_LICENSE "${weightsync_SOURCE}/LICENSE")
set(CPACK_PACKAGE_FILE_NAME
  "weightsync-${weightsync_VERSION}-${CMAKE_SYSTEM_NAME}-${CMAKE_SYSTEM_PROCESSOR}")
set(CPACK_STRIP_FILES OFF) # They are stripped.
set(CPACK_VERBATIM_VARIABLES ON)
set(CPACK_COMPONENTS_ALL runtime development)
if(WEIGHTSYNC_COMMAND)
  list(APPEND CPACK_COMPONENTS_ALL tools)
endif()
set(CPACK_COMPONENT_DEVELOPMENT_DEPENDS runtime)
if(CMAKE_INSTALL_PREFIX STREQUAL "/usr")
  set(CPACK_PACKAGING_INSTALL_PREFIX "/usr")
endif()

# What a package has, in its description.
set(about_runtime "the shared library")
set(about_development "the headers, the archive, and the pkg-config and CMake files")
set(about_tools "the weightsync command")
set(about_python "the Python package")

# ---- Debian ----------------------------------------------------------------------
set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
if(WEIGHTSYNC_GLIBC)
  # Its symbols are that old; dpkg-shlibdeps would ask for the builder's glibc.
  set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS OFF)
  set(CPACK_DEBIAN_RUNTIME_PACKAGE_DEPENDS "libc6 (>= ${WEIGHTSYNC_GLIBC})")
  set(CPACK_DEBIAN_TOOLS_PACKAGE_DEPENDS "libc6 (>= ${WEIGHTSYNC_GLIBC})")
else()
  set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
endif()
set(CPACK_DEBIAN_PACKAGE_CONTROL_STRICT_PERMISSION ON)
set(CPACK_DEBIAN_PACKAGE_SECTION libs)
set(CPACK_DEBIAN_COMPRESSION_TYPE xz)

set(CPACK_DEBIAN_RUNTIME_PACKAGE_NAME "${runtime}")
set(CPACK_DEBIAN_RUNTIME_PACKAGE_SECTION libs)
set(CPACK_DEBIAN_RUNTIME_PACKAGE_SUGGESTS "libnccl2 (>= 2.18), libcudart12 | libcudart11.0")
# What dpkg-shlibdeps writes into packages that link the library.
set(control "${CMAKE_CURRENT_BINARY_DIR}/control")
file(WRITE "${control}/shlibs"
  "libweightsync ${weightsync_ABI} ${runtime} (>= ${weightsync_VERSION})\n")
set(CPACK_DEBIAN_RUNTIME_PACKAGE_CONTROL_EXTRA
  "${CMAKE_CURRENT_LIST_DIR}/debian/triggers;${control}/shlibs")
set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_NAME libweightsync-dev)
set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_SECTION libdevel)
set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_DEPENDS "${runtime} (= ${weightsync_VERSION})")
set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_SUGGESTS "pkg-config, cmake")
set(CPACK_DEBIAN_TOOLS_PACKAGE_NAME weightsync-tools)
set(CPACK_DEBIAN_TOOLS_PACKAGE_SECTION utils)
set(CPACK_DEBIAN_PYTHON_PACKAGE_NAME python3-weightsync)
set(CPACK_DEBIAN_PYTHON_PACKAGE_SECTION python)
set(CPACK_DEBIAN_PYTHON_PACKAGE_ARCHITECTURE all)
set(CPACK_DEBIAN_PYTHON_PACKAGE_SHLIBDEPS OFF)
set(CPACK_DEBIAN_PYTHON_PACKAGE_DEPENDS
  "python3 (>= 3.9), ${runtime} (>= ${weightsync_VERSION})")
set(CPACK_DEBIAN_PYTHON_PACKAGE_SUGGESTS "python3-numpy")
set(CPACK_DEBIAN_PYTHON_PACKAGE_CONTROL_EXTRA
  "${CMAKE_CURRENT_LIST_DIR}/debian/postinst;${CMAKE_CURRENT_LIST_DIR}/debian/prerm")

foreach(component runtime development tools python)
  string(TOUPPER "${component}" upper)
  set(text "${long_description}\n\nThis package has ${about_${component}}.")
  set(CPACK_DEBIAN_${upper}_DESCRIPTION "${text}")
  set(CPACK_RPM_${upper}_PACKAGE_SUMMARY "${summary}: ${about_${component}}")
  set(CPACK_RPM_${upper}_PACKAGE_DESCRIPTION "${text}")
endforeach()

if(weightsync_FOR_DEBIAN)
  list(APPEND CPACK_COMPONENTS_ALL python)
  # Every package has its own copy of the licence and of what changed.
  set(papers "${CMAKE_CURRENT_BINARY_DIR}/papers")
  string(TIMESTAMP weightsync_DATE "%a, %d %b %Y %H:%M:%S +0000" UTC)
  configure_file("${CMAKE_CURRENT_LIST_DIR}/debian/changelog.in" "${papers}/changelog.Debian" @ONLY)
  configure_file("${CMAKE_CURRENT_LIST_DIR}/debian/copyright" "${papers}/copyright" COPYONLY)
  configure_file("${weightsync_SOURCE}/CHANGELOG.md" "${papers}/changelog" COPYONLY)
  execute_process(COMMAND gzip -9nf changelog changelog.Debian
    WORKING_DIRECTORY "${papers}")
  foreach(component runtime development tools python)
    string(TOUPPER "${component}" upper)
    install(FILES "${papers}/copyright" "${papers}/changelog.gz" "${papers}/changelog.Debian.gz"
      "${weightsync_SOURCE}/THIRD_PARTY_NOTICES"
      DESTINATION "share/doc/${CPACK_DEBIAN_${upper}_PACKAGE_NAME}"
      COMPONENT ${component} EXCLUDE_FROM_ALL)
  endforeach()
endif()

# ---- RPM -----------------------------------------------------------------------------
set(CPACK_RPM_COMPONENT_INSTALL ON)
set(CPACK_RPM_FILE_NAME RPM-DEFAULT)
set(CPACK_RPM_PACKAGE_LICENSE "Apache-2.0")
set(CPACK_RPM_PACKAGE_GROUP "System Environment/Libraries")
set(CPACK_RPM_PACKAGE_AUTOREQ ON)
set(CPACK_RPM_PACKAGE_AUTOPROV ON)
set(CPACK_RPM_RUNTIME_PACKAGE_NAME "${runtime}")
set(CPACK_RPM_RUNTIME_POST_INSTALL_SCRIPT_FILE "${CMAKE_CURRENT_LIST_DIR}/rpm/ldconfig")
set(CPACK_RPM_RUNTIME_POST_UNINSTALL_SCRIPT_FILE "${CMAKE_CURRENT_LIST_DIR}/rpm/ldconfig")
# CPack drops its own Suggests where it does not know the rpm; rpmbuild takes the lines.
set(CPACK_RPM_SPEC_MORE_DEFINE "Suggests: libnccl >= 2.18\nSuggests: libcudart.so.12()(64bit)")
set(CPACK_RPM_DEVELOPMENT_PACKAGE_NAME weightsync-devel)
set(CPACK_RPM_DEVELOPMENT_PACKAGE_REQUIRES "${runtime} = ${weightsync_VERSION}")
set(CPACK_RPM_TOOLS_PACKAGE_NAME weightsync-tools)
# Folders that the system owns.
set(CPACK_RPM_EXCLUDE_FROM_AUTO_FILELIST_ADDITION
  /usr/lib64/pkgconfig /usr/lib64/cmake
  /usr/share/man /usr/share/man/man1
  /usr/share/bash-completion /usr/share/bash-completion/completions
  /usr/share/zsh /usr/share/zsh/site-functions
  /usr/share/fish /usr/share/fish/vendor_completions.d)

include(CPack)
