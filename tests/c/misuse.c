/*
 * Calls that are wrong, and what they must answer: a status, a message that
 * names the thing, and nothing changed.
 */

#include "check.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static const char layout_json[] =
    "{\"weightsync_layout\": 1, \"ranks\": {\"first\": 0, \"count\": 1},"
    " \"tensors\": [{\"name\": \"w\", \"shape\": [4, 4], \"dtype\": \"f32\"}]}";

static wsync_layout *make_layout(void) {
  wsync_error err = WSYNC_ERROR_INIT;
  wsync_layout *layout = NULL;
  OK(err, wsync_layout_create_from_json(layout_json, strlen(layout_json), &layout, &err));
  return layout;
}

static wsync_plan *make_plan(void) {
  wsync_error err = WSYNC_ERROR_INIT;
  wsync_layout *layout = make_layout();
  wsync_plan *plan = NULL;
  OK(err, wsync_plan_create(layout, layout, NULL, &plan, &err));
  wsync_layout_destroy(layout);
  return plan;
}

/* A transport of one rank, which has met itself. */
static wsync_transport *make_transport(void) {
  wsync_error err = WSYNC_ERROR_INIT;
  wsync_transport_options options = WSYNC_TRANSPORT_OPTIONS_INIT;
  wsync_transport *transport = NULL;
  unsigned char blob[WSYNC_GREETING_BYTES_MAX];
  wsync_bytes greeting;
  options.kind = WSYNC_TRANSPORT_KIND_LOOPBACK;
  options.rank_count = 1;
  OK(err, wsync_transport_create(&options, &transport, &err));
  greeting.ptr = blob;
  OK(err, wsync_transport_greeting(transport, blob, sizeof blob, &greeting.bytes, &err));
  OK(err, wsync_transport_meet(transport, &greeting, 1, SECONDS(10), &err));
  return transport;
}

static void handles_of_another_type(void) {
  wsync_error err = WSYNC_ERROR_INIT;
  wsync_layout *layout = make_layout();
  wsync_plan *plan = make_plan();
  size_t needed = 7;

  EXPECT(WSYNC_ERR_BAD_HANDLE, err, wsync_plan_verify((wsync_plan *)(void *)layout, &err));
  CHECK(strstr(err.message, "plan") != NULL);
  EXPECT(WSYNC_ERR_BAD_HANDLE, err,
         wsync_layout_describe((wsync_layout *)(void *)plan, NULL, 0, &needed, &err));
  CHECK(needed == 7);
  EXPECT(WSYNC_ERR_BAD_HANDLE, err, wsync_plan_verify((wsync_plan *)((char *)(void *)plan + 1), &err));
  CHECK(wsync_layout_rank_count((wsync_layout *)(void *)plan) == 0);
  CHECK(wsync_plan_step_count(NULL) == 0);

  /* A destroy of the wrong type leaves the object alone. */
  wsync_layout_destroy((wsync_layout *)(void *)plan);
  OK(err, wsync_plan_verify(plan, &err));

  wsync_layout_destroy(NULL);
  wsync_plan_destroy(NULL);
  wsync_mapping_destroy(NULL);
  wsync_transport_destroy(NULL);
  wsync_session_destroy(NULL);
  wsync_request_destroy(NULL);
  wsync_layout_destroy(layout);
  wsync_plan_destroy(plan);
}

static void error_records(void) {
  wsync_error err = WSYNC_ERROR_INIT;
  wsync_error untouched;
  wsync_plan *plan = make_plan();

  /* Without a record the status is all there is. */
  CHECK(wsync_plan_verify(NULL, NULL) == WSYNC_ERR_INVALID_ARGUMENT);

  /* A record is written when a call fails, and only then. */
  CHECK(wsync_plan_verify(NULL, &err) == WSYNC_ERR_INVALID_ARGUMENT);
  CHECK(err.status == WSYNC_ERR_INVALID_ARGUMENT);
  untouched = err;
  CHECK(wsync_plan_verify(plan, &err) == WSYNC_OK);
  CHECK(memcmp(&err, &untouched, sizeof err) == 0);

  /* One whose size is impossible is refused before anything happens. */
  err.struct_size = 8;
  untouched = err;
  CHECK(wsync_plan_verify(plan, &err) == WSYNC_ERR_INVALID_ARGUMENT);
  CHECK(memcmp(&err, &untouched, sizeof err) == 0);
  wsync_plan_destroy(plan);
}

static void structs_of_other_versions(void) {
  struct {
    wsync_plan_options known;
    uint64_t newer;
  } options;
  wsync_error err = WSYNC_ERROR_INIT;
  wsync_layout *layout = make_layout();
  wsync_plan *plan = NULL;

  memset(&options, 0, sizeof options);
  options.known.struct_size = sizeof options;
  OK(err, wsync_plan_create(layout, layout, &options.known, &plan, &err));
  wsync_plan_destroy(plan);
  plan = NULL;

  options.newer = 1;
  EXPECT(WSYNC_ERR_UNSUPPORTED, err,
         wsync_plan_create(layout, layout, &options.known, &plan, &err));
  options.newer = 0;
  options.known.struct_size = 3;
  EXPECT(WSYNC_ERR_INVALID_ARGUMENT, err,
         wsync_plan_create(layout, layout, &options.known, &plan, &err));
  options.known.struct_size = SIZE_MAX;
  EXPECT(WSYNC_ERR_INVALID_ARGUMENT, err,
         wsync_plan_create(layout, layout, &options.known, &plan, &err));
  options.known.struct_size = sizeof options.known;
  options.known.strategy = 4711;
  EXPECT(WSYNC_ERR_UNSUPPORTED, err,
         wsync_plan_create(layout, layout, &options.known, &plan, &err));
  CHECK(strstr(err.message, "4711") != NULL);
  CHECK(plan == NULL);
  wsync_layout_destroy(layout);
}

static wsync_status read_layout(const void *bytes, size_t count) {
  wsync_layout *out = NULL;
  wsync_status status = wsync_layout_create_from_bytes(bytes, count, &out, NULL);
  CHECK((out != NULL) == (status == WSYNC_OK));
  wsync_layout_destroy(out);
  return status;
}

static wsync_status read_plan(const void *bytes, size_t count) {
  wsync_plan *out = NULL;
  wsync_status status = wsync_plan_create_from_bytes(bytes, count, &out, NULL);
  CHECK((out != NULL) == (status == WSYNC_OK));
  wsync_plan_destroy(out);
  return status;
}

/* Cut anywhere, or with any byte damaged, bytes are refused. */
static void damage(unsigned char *bytes, size_t count,
                   wsync_status (*read)(const void *, size_t)) {
  CHECK(read(bytes, count) == WSYNC_OK);
  for (size_t cut = 0; cut < count; cut++) CHECK(read(bytes, cut) == WSYNC_ERR_CORRUPT);
  for (size_t at = 0; at < count; at++) {
    wsync_status status;
    bytes[at] ^= 0x10;
    status = read(bytes, count);
    CHECK(status == WSYNC_ERR_CORRUPT || status == WSYNC_ERR_VERSION_MISMATCH);
    bytes[at] ^= 0x10;
  }
}

static void damaged_bytes(void) {
  wsync_error err = WSYNC_ERROR_INIT;
  wsync_layout *layout = make_layout();
  wsync_plan *plan = make_plan();
  unsigned char bytes[4096];
  size_t count = 0;

  OK(err, wsync_layout_serialize(layout, NULL, 0, &count, &err));
  EXPECT(WSYNC_ERR_BUFFER_TOO_SMALL, err,
         wsync_layout_serialize(layout, bytes, count - 1, &count, &err));
  OK(err, wsync_layout_serialize(layout, bytes, sizeof bytes, &count, &err));
  damage(bytes, count, read_layout);
  /* A layout is no plan. */
  CHECK(read_plan(bytes, count) == WSYNC_ERR_CORRUPT);

  OK(err, wsync_plan_serialize(plan, bytes, sizeof bytes, &count, &err));
  damage(bytes, count, read_plan);
  wsync_layout_destroy(layout);
  wsync_plan_destroy(plan);
}

static void names_and_texts(void) {
  static const char not_utf8[] = "w\xff\xfe";
  static const char broken[] = "{\"weightsync_layout\": 1, \"tensors\": [}";
  char oversized[WSYNC_NAME_BYTES_MAX + 2];
  wsync_error err = WSYNC_ERROR_INIT;
  wsync_layout *layout = NULL;
  wsync_plan *plan = make_plan();
  uint32_t step = 7;

  memset(oversized, 'x', sizeof oversized);
  oversized[sizeof oversized - 1] = '\0';
  EXPECT(WSYNC_ERR_INVALID_ARGUMENT, err,
         wsync_plan_tensor_last_step(plan, 0, not_utf8, &step, &err));
  EXPECT(WSYNC_ERR_LIMIT_EXCEEDED, err,
         wsync_plan_tensor_last_step(plan, 0, oversized, &step, &err));
  EXPECT(WSYNC_ERR_NOT_FOUND, err,
         wsync_plan_tensor_last_step(plan, 0, "nobody", &step, &err));
  CHECK(strstr(err.message, "nobody") != NULL);
  EXPECT(WSYNC_ERR_NOT_FOUND, err,
         wsync_plan_tensor_last_step(plan, 0, "two\nlines", &step, &err));
  CHECK(strstr(err.message, "two lines") != NULL && strchr(err.message, '\n') == NULL);
  EXPECT(WSYNC_ERR_NOT_FOUND, err, wsync_plan_tensor_last_step(plan, 99, "w", &step, &err));
  CHECK(strstr(err.message, "rank 99 is in neither layout") != NULL);
  CHECK(step == 7);
  EXPECT(WSYNC_ERR_LAYOUT_INVALID, err,
         wsync_layout_create_from_json(broken, strlen(broken), &layout, &err));
  EXPECT(WSYNC_ERR_LIMIT_EXCEEDED, err,
         wsync_layout_create_from_json(broken, SIZE_MAX, &layout, &err));
  CHECK(layout == NULL);
  wsync_plan_destroy(plan);
}

static void calls_in_the_wrong_state(void) {
  wsync_error err = WSYNC_ERROR_INIT;
  wsync_transport_options options = WSYNC_TRANSPORT_OPTIONS_INIT;
  wsync_request_options request_options = WSYNC_REQUEST_OPTIONS_INIT;
  wsync_transport *stranger = NULL;
  wsync_transport *transport = make_transport();
  wsync_session *session = NULL;
  wsync_request *request = NULL;
  wsync_plan *plan = make_plan();
  float source[16];
  float destination[16];
  uint32_t slot = 7;
  uint32_t outcomes[2] = {0, 0};
  uint64_t digest = 0;

  /* Nobody was met. */
  options.kind = WSYNC_TRANSPORT_KIND_LOOPBACK;
  options.rank_count = 2;
  OK(err, wsync_transport_create(&options, &stranger, &err));
  EXPECT(WSYNC_ERR_INVALID_STATE, err, wsync_session_create(stranger, NULL, &session, &err));
  EXPECT(WSYNC_ERR_INVALID_ARGUMENT, err, wsync_transport_meet(stranger, NULL, 2, 0, &err));
  OK(err, wsync_transport_abort(stranger, "nobody comes", &err));
  EXPECT(WSYNC_ERR_ABORTED, err, wsync_transport_status(stranger, &err));
  CHECK(strstr(err.message, "nobody comes") != NULL);
  wsync_transport_destroy(stranger);
  options.rank = 2;
  EXPECT(WSYNC_ERR_INVALID_ARGUMENT, err, wsync_transport_create(&options, &stranger, &err));

  /* A slot that is empty. */
  OK(err, wsync_session_create(transport, NULL, &session, &err));
  EXPECT(WSYNC_ERR_NOT_FOUND, err, wsync_request_create(session, 0, &request, &err));

  /* Buffers that are missing, too small, of unknown sides and memory. */
  memset(source, 0x3f, sizeof source);
  EXPECT(WSYNC_ERR_BUFFER_MISMATCH, err, wsync_session_load(session, plan, &slot, &err));
  CHECK(strstr(err.message, "\"w\"") != NULL);
  OK(err, wsync_session_bind(session, WSYNC_SIDE_SOURCE, "w", source, sizeof source - 1,
                             WSYNC_MEMORY_HOST, 0, &err));
  OK(err, wsync_session_bind(session, WSYNC_SIDE_DESTINATION, "w", destination,
                             sizeof destination, WSYNC_MEMORY_HOST, 0, &err));
  EXPECT(WSYNC_ERR_BUFFER_MISMATCH, err, wsync_session_load(session, plan, &slot, &err));
  CHECK(strstr(err.message, "63") != NULL && strstr(err.message, "64") != NULL);
  CHECK(slot == 7);
  EXPECT(WSYNC_ERR_UNSUPPORTED, err,
         wsync_session_bind(session, 3, "w", source, sizeof source, 0, 0, &err));
  EXPECT(WSYNC_ERR_UNSUPPORTED, err,
         wsync_session_bind(session, WSYNC_SIDE_SOURCE, "w", source, sizeof source, 9, 0, &err));
  EXPECT(WSYNC_ERR_INVALID_ARGUMENT, err,
         wsync_session_bind(session, WSYNC_SIDE_SOURCE, "w", NULL, 64, 0, 0, &err));
  EXPECT(WSYNC_ERR_INVALID_ARGUMENT, err,
         wsync_session_bind(session, WSYNC_SIDE_SOURCE, "w", source, UINT64_MAX, 0, 0, &err));
  EXPECT(WSYNC_ERR_NOT_FOUND, err,
         wsync_session_unbind(session, WSYNC_SIDE_SOURCE, "nobody", &err));

  /* bind_many takes all or none: the second element is wrong. */
  {
    wsync_binding bindings[2];
    memset(bindings, 0, sizeof bindings);
    bindings[0].name.ptr = "w";
    bindings[0].name.bytes = 1;
    bindings[0].ptr = source;
    bindings[0].bytes = sizeof source;
    bindings[0].side = WSYNC_SIDE_SOURCE;
    bindings[1] = bindings[0];
    bindings[1].name.bytes = 0;
    EXPECT(WSYNC_ERR_LIMIT_EXCEEDED, err,
           wsync_session_bind_many(session, bindings, 2, sizeof bindings[0], &err));
    EXPECT(WSYNC_ERR_BUFFER_MISMATCH, err, wsync_session_load(session, plan, &slot, &err));
    EXPECT(WSYNC_ERR_INVALID_ARGUMENT, err,
           wsync_session_bind_many(session, bindings, 2, 5, &err));
    OK(err, wsync_session_bind_many(session, bindings, 1, sizeof bindings[0], &err));

    /* An array whose columns are rows in the plan; then its plain bytes. */
    bindings[0].dtype.code = WSYNC_DTYPE_CODE_FLOAT;
    bindings[0].dtype.bits = 32;
    bindings[0].dtype.lanes = 1;
    bindings[0].dim_count = 2;
    bindings[0].shape[0] = bindings[0].shape[1] = 4;
    bindings[0].strides[0] = 4;
    bindings[0].strides[1] = 16;
    OK(err, wsync_session_bind_many(session, bindings, 1, sizeof bindings[0], &err));
    EXPECT(WSYNC_ERR_BUFFER_MISMATCH, err, wsync_session_load(session, plan, &slot, &err));
    CHECK(strstr(err.message, "\"w\"") != NULL);
    CHECK(strstr(err.message, "[4, 16]") != NULL && strstr(err.message, "[16, 4]") != NULL);
    bindings[0].dim_count = 0;
    memset(bindings[0].shape, 0, sizeof bindings[0].shape);
    memset(bindings[0].strides, 0, sizeof bindings[0].strides);
    OK(err, wsync_session_bind_many(session, bindings, 1, sizeof bindings[0], &err));
  }

  /* A request that was not prepared. */
  OK(err, wsync_session_load(session, plan, &slot, &err));
  OK(err, wsync_request_create(session, slot, &request, &err));
  EXPECT(WSYNC_ERR_INVALID_STATE, err, wsync_request_test(request, &err));
  EXPECT(WSYNC_ERR_INVALID_STATE, err, wsync_request_wait(request, SECONDS(1), &err));
  EXPECT(WSYNC_ERR_INVALID_STATE, err, wsync_request_wait_ready(request, SECONDS(1), &err));
  EXPECT(WSYNC_ERR_INVALID_STATE, err, wsync_request_start(request, NULL, &err));
  EXPECT(WSYNC_ERR_INVALID_STATE, err,
         wsync_request_outcome(request, &outcomes[0], &outcomes[1], &err));

  /* Flags that are unknown, streams that no device has. */
  request_options.flags = 0x80;
  EXPECT(WSYNC_ERR_UNSUPPORTED, err, wsync_request_prepare(request, &request_options, &err));
  request_options.flags = 0;
  request_options.reserved = 1;
  EXPECT(WSYNC_ERR_UNSUPPORTED, err, wsync_request_prepare(request, &request_options, &err));
  EXPECT(WSYNC_ERR_UNSUPPORTED, err, wsync_request_submit(request, NULL, source, &err));

  /* Now it is right; while it is READY nothing else may begin. */
  OK(err, wsync_request_prepare(request, NULL, &err));
  EXPECT(WSYNC_ERR_BUSY, err, wsync_request_prepare(request, NULL, &err));
  OK(err, wsync_request_wait_ready(request, SECONDS(10), &err));
  EXPECT(WSYNC_ERR_BUSY, err, wsync_session_unload(session, slot, &err));
  EXPECT(WSYNC_ERR_BUSY, err, wsync_session_unbind(session, WSYNC_SIDE_SOURCE, "w", &err));
  EXPECT(WSYNC_ERR_UNSUPPORTED, err, wsync_request_start(request, source, &err));
  OK(err, wsync_request_start(request, NULL, &err));
  OK(err, wsync_request_wait(request, SECONDS(10), &err));
  CHECK(memcmp(source, destination, sizeof source) == 0);

  /* It was not verified, so there is no digest. */
  EXPECT(WSYNC_ERR_INVALID_STATE, err, wsync_request_tensor_digest(request, "w", &digest, &err));
  EXPECT(WSYNC_ERR_NOT_FOUND, err, wsync_request_tensor_digest(request, "v", &digest, &err));

  OK(err, wsync_session_unload(session, slot, &err));
  EXPECT(WSYNC_ERR_NOT_FOUND, err, wsync_session_unload(session, slot, &err));
  EXPECT(WSYNC_ERR_NOT_FOUND, err, wsync_request_prepare(request, NULL, &err));
  OK(err, wsync_session_finalize(session, 0, &err));
  EXPECT(WSYNC_ERR_INVALID_STATE, err, wsync_request_create(session, slot, &request, &err));
  wsync_request_destroy(request);
  wsync_session_destroy(session);
  wsync_transport_destroy(transport);
  wsync_plan_destroy(plan);
}

/* In a forked child the threads are gone: refuse, and never touch the parent's
 * peers. */
static void after_a_fork(void) {
  wsync_error err = WSYNC_ERROR_INIT;
  wsync_transport *transport = make_transport();
  wsync_session *session = NULL;
  wsync_plan *plan = make_plan();
  uint32_t slot = 7;
  int status = 0;
  pid_t child;

  OK(err, wsync_session_create(transport, NULL, &session, &err));
  child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    if (wsync_session_load(session, plan, &slot, NULL) != WSYNC_ERR_INVALID_STATE) _exit(1);
    if (wsync_transport_status(transport, NULL) != WSYNC_ERR_INVALID_STATE) _exit(2);
    if (wsync_plan_verify(plan, NULL) != WSYNC_OK) _exit(3);
    wsync_session_destroy(session);
    wsync_transport_destroy(transport);
    if (slot != 7) _exit(4);
    /* Ends without a leak check: what the parent's threads hold is theirs. */
    kill(getpid(), SIGKILL);
  }
  CHECK(waitpid(child, &status, 0) == child);
  CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
  OK(err, wsync_transport_status(transport, &err));
  OK(err, wsync_session_finalize(session, 0, &err));
  wsync_session_destroy(session);
  wsync_transport_destroy(transport);
  wsync_plan_destroy(plan);
}

int main(void) {
  handles_of_another_type();
  error_records();
  structs_of_other_versions();
  damaged_bytes();
  names_and_texts();
  calls_in_the_wrong_state();
  after_a_fork();
  puts("every misuse was refused");
  return 0;
}
