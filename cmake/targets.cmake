# The targets of the build tree, by the names that the installed package gives
# them: a project that moves from add_subdirectory to find_package changes
# nothing else.

# What Rust's standard library needs beside it in a static link.
set(weightsync_STATIC_LIBRARIES pthread dl m rt util gcc_s)

add_library(weightsync::weightsync SHARED IMPORTED GLOBAL)
set_target_properties(weightsync::weightsync PROPERTIES
  IMPORTED_LOCATION "${weightsync_SO}"
  IMPORTED_SONAME "libweightsync.so.${weightsync_ABI}"
  INTERFACE_INCLUDE_DIRECTORIES "${weightsync_SOURCE}/include")

add_library(weightsync::static STATIC IMPORTED GLOBAL)
set_target_properties(weightsync::static PROPERTIES
  IMPORTED_LOCATION "${weightsync_ARCHIVE}"
  IMPORTED_LINK_INTERFACE_LANGUAGES "C"
  INTERFACE_INCLUDE_DIRECTORIES
    "${weightsync_SOURCE}/include;${weightsync_SOURCE}/bindings/cpp/include"
  INTERFACE_LINK_LIBRARIES "${weightsync_STATIC_LIBRARIES}")

add_library(weightsync_cpp INTERFACE)
add_library(weightsync::cpp ALIAS weightsync_cpp)
target_link_libraries(weightsync_cpp INTERFACE weightsync::weightsync)
target_include_directories(weightsync_cpp INTERFACE "${weightsync_SOURCE}/bindings/cpp/include")
target_compile_features(weightsync_cpp INTERFACE cxx_std_17)

add_dependencies(weightsync::weightsync weightsync_stage)
add_dependencies(weightsync::static weightsync_stage)
