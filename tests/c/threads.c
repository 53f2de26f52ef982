/* What may be called by many threads at a time, and what answers BUSY. */

#include "check.h"

#include <pthread.h>
#include <time.h>

#define THREADS 4
#define ROUNDS 200

static const char layout_json[] =
    "{\"weightsync_layout\": 1, \"ranks\": {\"first\": 0, \"count\": 4},"
    " \"meshes\": {\"m\": [[\"tp\", 4]]},"
    " \"tensors\": [{\"name\": \"w\", \"shape\": [64, 8], \"dtype\": \"bf16\","
    "  \"cuts\": [{\"dim\": 0, \"axes\": [\"tp\"]}]}]}";

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

/* One plan, asked by all threads at once, answers all of them alike. */
static void *ask(void *argument) {
  const wsync_plan *plan = (const wsync_plan *)argument;
  wsync_error err = WSYNC_ERROR_INIT;
  wsync_fingerprint first;
  OK(err, wsync_plan_fingerprint(plan, &first, &err));
  for (uint32_t round = 0; round < ROUNDS; round++) {
    wsync_buffer_info info = WSYNC_BUFFER_INFO_INIT;
    wsync_fingerprint again;
    uint32_t rank = round % 4;
    size_t needed = 0;
    OK(err, wsync_plan_buffer_at(plan, rank, 0, &info, &err));
    CHECK(info.bytes == 64 / 4 * 8 * 2);
    OK(err, wsync_plan_report(plan, NULL, 0, &needed, &err));
    CHECK(needed > 1);
    OK(err, wsync_plan_fingerprint(plan, &again, &err));
    CHECK(memcmp(&first, &again, sizeof first) == 0);
  }
  return NULL;
}

static void test_shared_plan(void) {
  pthread_t threads[THREADS];
  wsync_plan *plan = make_plan();
  for (int i = 0; i < THREADS; i++) {
    CHECK(pthread_create(&threads[i], NULL, ask, plan) == 0);
  }
  for (int i = 0; i < THREADS; i++) CHECK(pthread_join(threads[i], NULL) == 0);
  wsync_plan_destroy(plan);
}

/* A rank that waits for a peer which never prepares. */
typedef struct waiting {
  wsync_session *session;
  wsync_status status;
} waiting;

static void *finalize(void *argument) {
  waiting *state = (waiting *)argument;
  state->status = wsync_session_finalize(state->session, SECONDS(60), NULL);
  return NULL;
}

static void nap(void) {
  const struct timespec ms = {0, 1000000};
  nanosleep(&ms, NULL);
}

static wsync_transport *open_transport(uint32_t rank, unsigned char *blob, wsync_bytes *bytes) {
  wsync_error err = WSYNC_ERROR_INIT;
  wsync_transport_options options = WSYNC_TRANSPORT_OPTIONS_INIT;
  wsync_transport *transport = NULL;
  options.kind = WSYNC_TRANSPORT_KIND_LOOPBACK;
  options.rank = rank;
  options.rank_count = 4;
  OK(err, wsync_transport_create(&options, &transport, &err));
  bytes->ptr = blob;
  OK(err, wsync_transport_greeting(transport, blob, WSYNC_GREETING_BYTES_MAX,
                                   &bytes->bytes, &err));
  return transport;
}

typedef struct meeting {
  wsync_transport *transport;
  const wsync_bytes *greetings;
} meeting;

static void *meet(void *argument) {
  meeting *m = (meeting *)argument;
  wsync_error err = WSYNC_ERROR_INIT;
  OK(err, wsync_transport_meet(m->transport, m->greetings, 4, SECONDS(60), &err));
  return NULL;
}

static void test_busy_and_abort(void) {
  wsync_error err = WSYNC_ERROR_INIT;
  unsigned char blobs[4][WSYNC_GREETING_BYTES_MAX];
  wsync_bytes greetings[4];
  wsync_transport *transports[4];
  meeting meetings[4];
  pthread_t threads[4];
  pthread_t waiter;
  wsync_plan *plan = make_plan();
  wsync_session *session = NULL;
  wsync_request *request = NULL;
  uint32_t slot = 0;
  char memory[256];
  waiting state;

  for (uint32_t r = 0; r < 4; r++) transports[r] = open_transport(r, blobs[r], &greetings[r]);
  for (uint32_t r = 0; r < 4; r++) {
    meetings[r].transport = transports[r];
    meetings[r].greetings = greetings;
    CHECK(pthread_create(&threads[r], NULL, meet, &meetings[r]) == 0);
  }
  for (uint32_t r = 0; r < 4; r++) CHECK(pthread_join(threads[r], NULL) == 0);

  OK(err, wsync_session_create(transports[1], NULL, &session, &err));
  for (uint32_t side = WSYNC_SIDE_SOURCE; side <= WSYNC_SIDE_DESTINATION; side++) {
    wsync_buffer_info info = WSYNC_BUFFER_INFO_INIT;
    OK(err, wsync_plan_buffer_at(plan, 1, side - 1, &info, &err));
    CHECK(info.side == side && info.bytes <= sizeof memory);
    OK(err, wsync_session_bind(session, side, info.name, memory, sizeof memory,
                               WSYNC_MEMORY_HOST, 0, &err));
  }
  OK(err, wsync_session_load(session, plan, &slot, &err));
  OK(err, wsync_request_create(session, slot, &request, &err));
  OK(err, wsync_request_prepare(request, NULL, &err));
  CHECK(wsync_request_test(request, &err) == WSYNC_IN_PROGRESS);
  CHECK(wsync_request_wait_ready(request, 1, &err) == WSYNC_IN_PROGRESS);

  /* finalize is inside the session: others are BUSY, abort is not. */
  state.session = session;
  state.status = WSYNC_OK;
  CHECK(pthread_create(&waiter, NULL, finalize, &state) == 0);
  while (wsync_session_unbind(session, WSYNC_SIDE_SOURCE, "none", &err) != WSYNC_ERR_BUSY) nap();
  OK(err, wsync_session_abort(session, "the test says so", &err));
  CHECK(pthread_join(waiter, NULL) == 0);
  CHECK(state.status == WSYNC_OK || wsync_status_is_transport_lost(state.status));

  /* The first reason wins, on every rank. */
  OK(err, wsync_transport_abort(transports[1], "too late", &err));
  EXPECT(WSYNC_ERR_ABORTED, err, wsync_request_wait(request, SECONDS(60), &err));
  CHECK(strstr(err.message, "the test says so") != NULL);
  CHECK(err.rank == 1);
  while (wsync_transport_status(transports[3], &err) == WSYNC_OK) nap();
  EXPECT(WSYNC_ERR_ABORTED, err, wsync_transport_status(transports[3], &err));
  CHECK(strstr(err.message, "the test says so") != NULL);

  /* Parents first: children keep them alive. */
  for (uint32_t r = 0; r < 4; r++) wsync_transport_destroy(transports[r]);
  wsync_plan_destroy(plan);
  wsync_session_destroy(session);
  EXPECT(WSYNC_ERR_ABORTED, err, wsync_request_test(request, &err));
  wsync_request_destroy(request);
}

/* Lines go to the function that is set, and to nobody once it is replaced. */
static void on_line(void *user, uint32_t level, const char *message) {
  CHECK(level >= WSYNC_LOG_LEVEL_ERROR && level <= WSYNC_LOG_LEVEL_DEBUG);
  CHECK(message != NULL);
  *(unsigned *)user += 1;
}

static void *toggle_log(void *argument) {
  (void)argument;
  for (int i = 0; i < ROUNDS; i++) {
    wsync_error err = WSYNC_ERROR_INIT;
    unsigned lines = 0;
    OK(err, wsync_set_log(on_line, &lines, WSYNC_LOG_LEVEL_ERROR, &err));
    OK(err, wsync_set_log(NULL, NULL, WSYNC_LOG_LEVEL_OFF, &err));
  }
  return NULL;
}

static void test_log(void) {
  pthread_t threads[THREADS];
  for (int i = 0; i < THREADS; i++) {
    CHECK(pthread_create(&threads[i], NULL, toggle_log, NULL) == 0);
  }
  for (int i = 0; i < THREADS; i++) CHECK(pthread_join(threads[i], NULL) == 0);
}

int main(void) {
  test_shared_plan();
  test_busy_and_abort();
  test_log();
  puts("threads behave");
  return 0;
}
