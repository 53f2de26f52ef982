# consumer(NAME SOURCE TARGET PROPERTY VALUE): a program with no word of its own
# about includes, libraries or flags.
set(root "${CMAKE_CURRENT_LIST_DIR}/../../..")

function(consumer name source target property value)
  add_executable(${name} "${root}/${source}")
  set_target_properties(${name} PROPERTIES ${property} ${value} C_EXTENSIONS ON CXX_EXTENSIONS OFF)
  target_compile_options(${name} PRIVATE -Wall -Wextra -Werror)
  target_link_libraries(${name} PRIVATE ${target})
endfunction()

set(c tests/c/deliver.c)
set(cpp bindings/cpp/examples/deliver.cc)
consumer(c99 ${c} weightsync::weightsync C_STANDARD 99)
consumer(cpp17 ${cpp} weightsync::cpp CXX_STANDARD 17)
consumer(cpp20 ${cpp} weightsync::cpp CXX_STANDARD 20)
consumer(c99_static ${c} weightsync::static C_STANDARD 99)
consumer(cpp17_static ${cpp} weightsync::static CXX_STANDARD 17)
