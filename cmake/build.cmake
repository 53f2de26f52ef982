# One run of cargo makes library, archive and command; what is installed is a
# copy of them without debug information, which is kept beside it:
#
#   cargo/<profile>/libweightsync.so  ->  stage/libweightsync.so.0.1.0
#                                         stage/libweightsync.so.0.1.0.debug

find_program(CARGO_EXECUTABLE cargo HINTS "$ENV{CARGO_HOME}/bin" "$ENV{HOME}/.cargo/bin")
if(NOT CARGO_EXECUTABLE)
  message(FATAL_ERROR "weightsync is built with cargo, which is not found: install Rust, "
    "or set CARGO_EXECUTABLE to its full path")
endif()

set(cargo_command build)
set(cargo_arguments --locked --manifest-path "${weightsync_SOURCE}/Cargo.toml"
  --profile "${WEIGHTSYNC_PROFILE}" --target-dir "${WEIGHTSYNC_CARGO_TARGET_DIR}"
  ${WEIGHTSYNC_CARGO_FLAGS})
if(WEIGHTSYNC_COMMAND)
  list(APPEND cargo_arguments --lib --bin weightsync)
else()
  list(APPEND cargo_arguments --lib --no-default-features)
endif()

# Where cargo puts what it builds.
set(cargo_profile_folder "${WEIGHTSYNC_PROFILE}")
if(WEIGHTSYNC_PROFILE STREQUAL "dev")
  set(cargo_profile_folder "debug")
endif()
set(cargo_out "${WEIGHTSYNC_CARGO_TARGET_DIR}/${cargo_profile_folder}")
if(WEIGHTSYNC_GLIBC)
  find_program(CARGO_ZIGBUILD_EXECUTABLE cargo-zigbuild HINTS "$ENV{CARGO_HOME}/bin" "$ENV{HOME}/.cargo/bin")
  if(NOT CARGO_ZIGBUILD_EXECUTABLE)
    message(FATAL_ERROR "WEIGHTSYNC_GLIBC=${WEIGHTSYNC_GLIBC} takes cargo-zigbuild, which is not found: "
      "pip install ziglang cargo-zigbuild, or leave WEIGHTSYNC_GLIBC empty for this system's glibc")
  endif()
  set(cargo_triple "${CMAKE_SYSTEM_PROCESSOR}-unknown-linux-gnu")
  set(cargo_command zigbuild)
  list(APPEND cargo_arguments --target "${cargo_triple}.${WEIGHTSYNC_GLIBC}")
  set(cargo_out "${WEIGHTSYNC_CARGO_TARGET_DIR}/${cargo_triple}/${cargo_profile_folder}")
endif()

set(weightsync_STAGE "${CMAKE_CURRENT_BINARY_DIR}/stage")
set(weightsync_SO "${weightsync_STAGE}/libweightsync.so.${weightsync_VERSION}")
set(weightsync_ARCHIVE "${weightsync_STAGE}/libweightsync.a")
set(weightsync_PROGRAM "${weightsync_STAGE}/weightsync")
file(MAKE_DIRECTORY "${weightsync_STAGE}")

# Cargo knows best whether anything changed, so it is asked every time.
set(built "${cargo_out}/libweightsync.so" "${cargo_out}/libweightsync.a")
if(WEIGHTSYNC_COMMAND)
  list(APPEND built "${cargo_out}/weightsync")
endif()
add_custom_target(weightsync_cargo
  COMMAND "${CARGO_EXECUTABLE}" ${cargo_command} ${cargo_arguments}
  BYPRODUCTS ${built}
  WORKING_DIRECTORY "${weightsync_SOURCE}"
  COMMENT "Building weightsync ${weightsync_VERSION} with cargo"
  USES_TERMINAL VERBATIM)

# weightsync_strip(FROM TO KEEP_DEBUG FLAG...): a copy without debug information.
function(weightsync_strip from to keep_debug)
  set(commands COMMAND "${CMAKE_COMMAND}" -E copy "${from}" "${to}")
  if(CMAKE_STRIP AND CMAKE_OBJCOPY)
    if(keep_debug)
      list(APPEND commands COMMAND "${CMAKE_OBJCOPY}" --only-keep-debug "${from}" "${to}.debug")
    endif()
    list(APPEND commands COMMAND "${CMAKE_STRIP}" ${ARGN} -R .comment "${to}")
    if(keep_debug)
      list(APPEND commands COMMAND "${CMAKE_OBJCOPY}" "--add-gnu-debuglink=${to}.debug" "${to}")
    endif()
  endif()
  add_custom_command(OUTPUT "${to}" ${commands}
    DEPENDS weightsync_cargo "${from}"
    WORKING_DIRECTORY "${weightsync_STAGE}"
    COMMENT "Stripping ${to}" VERBATIM)
endfunction()

weightsync_strip("${cargo_out}/libweightsync.so" "${weightsync_SO}" ON --strip-unneeded)
# The names that the loader and the linker look for, so that programs of the
# build tree link and run.
add_custom_command(
  OUTPUT "${weightsync_STAGE}/libweightsync.so.${weightsync_ABI}" "${weightsync_STAGE}/libweightsync.so"
  COMMAND "${CMAKE_COMMAND}" -E create_symlink "libweightsync.so.${weightsync_VERSION}"
    "libweightsync.so.${weightsync_ABI}"
  COMMAND "${CMAKE_COMMAND}" -E create_symlink "libweightsync.so.${weightsync_ABI}" libweightsync.so
  DEPENDS "${weightsync_SO}" WORKING_DIRECTORY "${weightsync_STAGE}" VERBATIM)
# Rust's standard library comes with LLVM bitcode, which no linker of C looks at
# and which is four fifths of the archive.
weightsync_strip("${cargo_out}/libweightsync.a" "${weightsync_ARCHIVE}" OFF
  --strip-debug -R .llvmbc -R .llvmcmd)
set(staged "${weightsync_SO}" "${weightsync_STAGE}/libweightsync.so.${weightsync_ABI}"
  "${weightsync_STAGE}/libweightsync.so" "${weightsync_ARCHIVE}")

if(WEIGHTSYNC_COMMAND)
  weightsync_strip("${cargo_out}/weightsync" "${weightsync_PROGRAM}" ON --strip-all)
  set(weightsync_MANUAL "${weightsync_STAGE}/man")
  set(weightsync_COMPLETIONS "${weightsync_STAGE}/completions")
  file(MAKE_DIRECTORY "${weightsync_MANUAL}" "${weightsync_COMPLETIONS}")
  set(shells "")
  foreach(shell bash zsh fish)
    list(APPEND shells COMMAND "${weightsync_PROGRAM}" completions ${shell}
      > "${weightsync_COMPLETIONS}/${shell}")
  endforeach()
  add_custom_command(
    OUTPUT "${weightsync_MANUAL}/weightsync.1.gz" "${weightsync_COMPLETIONS}/fish"
    COMMAND "${CMAKE_COMMAND}" -E rm -rf "${weightsync_MANUAL}"
    COMMAND "${CMAKE_COMMAND}" -E make_directory "${weightsync_MANUAL}"
    COMMAND "${weightsync_PROGRAM}" manual --out "${weightsync_MANUAL}"
    COMMAND gzip -9nfr "${weightsync_MANUAL}"
    ${shells}
    DEPENDS "${weightsync_PROGRAM}"
    COMMENT "Writing manual pages and completions" VERBATIM)
  list(APPEND staged "${weightsync_PROGRAM}" "${weightsync_MANUAL}/weightsync.1.gz"
    "${weightsync_COMPLETIONS}/fish")
endif()

if(weightsync_IS_TOP_LEVEL)
  add_custom_target(weightsync_stage ALL DEPENDS ${staged})
else()
  # Built when something links it.
  add_custom_target(weightsync_stage DEPENDS ${staged})
endif()
