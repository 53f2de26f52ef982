/* Prints the environment as the library sees it, and what a plan of defaults
 * makes of it. */

#include "check.h"

static const char layout_json[] =
    "{\"weightsync_layout\": 1, \"ranks\": {\"first\": 0, \"count\": 1},"
    " \"tensors\": [{\"name\": \"w\", \"shape\": [4, 4], \"dtype\": \"f32\"}]}";

int main(void) {
  wsync_error err = WSYNC_ERROR_INIT;
  wsync_layout *layout = NULL;
  wsync_plan *plan = NULL;
  wsync_status status;

  CHECK(wsync_env_count() > 0);
  for (size_t i = 0; i < wsync_env_count(); i++) {
    wsync_env_info info = WSYNC_ENV_INFO_INIT;
    OK(err, wsync_env_at(i, &info, &err));
    CHECK(strncmp(info.name, "WSYNC_", 6) == 0 || strcmp(info.name, "VLLM_NCCL_SO_PATH") == 0);
    CHECK(info.meaning[0] != '\0');
    CHECK(info.is_set || strcmp(info.value, info.default_value) == 0);
    printf("%s=%s\n", info.name, info.value);
  }
  OK(err, wsync_layout_create_from_json(layout_json, strlen(layout_json), &layout, &err));
  status = wsync_plan_create(layout, layout, NULL, &plan, &err);
  printf("plan: %s\n", status == WSYNC_OK ? "OK" : err.message);
  wsync_plan_destroy(plan);
  wsync_layout_destroy(layout);
  return 0;
}
