/* What the C tests share: a check that prints where and why it failed. */

#ifndef WEIGHTSYNC_TEST_CHECK_H
#define WEIGHTSYNC_TEST_CHECK_H

#include "weightsync.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Ends the program unless `condition` holds. */
#define CHECK(condition)                                                        \
  do {                                                                          \
    if (!(condition)) {                                                         \
      fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);           \
      exit(1);                                                                  \
    }                                                                           \
  } while (0)

/* Ends the program unless `call`, which fills `error`, answers `wanted`. */
#define EXPECT(wanted, error, call)                                             \
  check_status((wanted), (call), &(error), #call, __FILE__, __LINE__)

#define OK(error, call) EXPECT(WSYNC_OK, error, call)

static inline void check_status(wsync_status wanted, wsync_status got,
                                const wsync_error *error, const char *call,
                                const char *file, int line) {
  if (got == wanted) return;
  fprintf(stderr, "%s:%d: %s\n  %s instead of %s: %s\n", file, line, call,
          wsync_status_name(got), wsync_status_name(wanted),
          got < 0 ? error->message : "");
  exit(1);
}

#define SECONDS(n) ((uint64_t)(n) * UINT64_C(1000000000))

#endif
