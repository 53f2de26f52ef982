/* The header alone, twice, in the oldest C that it promises. */

#include "weightsync.h"
#include "weightsync.h"

#if WSYNC_ABI_VERSION != 0 || WSYNC_VERSION != 0x000100
#error "the version constants are usable by the preprocessor"
#endif

int main(void) {
  wsync_error err = WSYNC_ERROR_INIT;
  struct wsync_plan *by_tag = NULL;
  wsync_plan *by_name = by_tag;
  const wsync_status status = wsync_plan_verify(by_name, &err);
  if (status != WSYNC_ERR_INVALID_ARGUMENT) return 1;
  if (err.status != status || err.message[0] == '\0') return 2;
  if (err.rank != WSYNC_RANK_NONE) return 3;
  return wsync_header_matches() ? 0 : 4;
}
