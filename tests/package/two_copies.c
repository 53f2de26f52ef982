/* Gives a layout of one copy of the library to another: two_copies FILE FILE */

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <weightsync.h>

static const char json[] =
    "{\"weightsync_layout\": 1, \"ranks\": {\"first\": 0, \"count\": 1},"
    " \"tensors\": [{\"name\": \"w\", \"shape\": [4], \"dtype\": \"u8\"}]}";

static void *find(void *library, const char *name) {
  void *found = library ? dlsym(library, name) : NULL;
  if (!found) fprintf(stderr, "%s\n", dlerror());
  return found;
}

int main(int argc, char **argv) {
  wsync_status (*create)(const char *, size_t, wsync_layout **, wsync_error *);
  wsync_status (*to_json)(const wsync_layout *, char *, size_t, size_t *, wsync_error *);
  wsync_status (*transport)(const wsync_transport_options *, wsync_transport **, wsync_error *);
  const char *(*status_name)(int32_t);
  wsync_error err = WSYNC_ERROR_INIT;
  wsync_transport_options options = WSYNC_TRANSPORT_OPTIONS_INIT;
  wsync_transport *made = NULL;
  wsync_layout *layout = NULL;
  wsync_status status;
  size_t needed = 0;
  void *one, *two;

  if (argc < 3) return 2;
  one = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
  two = dlopen(argv[2], RTLD_NOW | RTLD_LOCAL);
  *(void **)&create = find(one, "wsync_layout_create_from_json");
  *(void **)&to_json = find(two, "wsync_layout_to_json");
  *(void **)&transport = find(two, "wsync_transport_create");
  *(void **)&status_name = find(two, "wsync_status_name");
  if (!create || !to_json || !transport || !status_name) return 1;

  if (create(json, strlen(json), &layout, &err) != WSYNC_OK) return 1;
  status = to_json(layout, NULL, 0, &needed, &err);
  printf("%s %s\n", status_name(status), err.message);
  fflush(stdout);
  options.kind = WSYNC_TRANSPORT_KIND_LOOPBACK;
  options.rank_count = 1;
  return transport(&options, &made, &err) == WSYNC_OK ? 0 : 1;
}
