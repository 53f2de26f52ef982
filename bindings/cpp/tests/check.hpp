// What the C++ tests share: a check that says where it failed.

#ifndef WEIGHTSYNC_TEST_CHECK_HPP
#define WEIGHTSYNC_TEST_CHECK_HPP

#include <cstdio>
#include <cstdlib>

#define CHECK(condition)                                                       \
  do {                                                                         \
    if (!(condition)) {                                                        \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);     \
      std::exit(1);                                                            \
    }                                                                          \
  } while (0)

#endif
