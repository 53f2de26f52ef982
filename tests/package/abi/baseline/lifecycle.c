/*
 * A whole delivery: two ranks, threads of this process, each of them on both
 * sides. The source cuts a matrix by rows, the destination by columns, so that
 * half of it travels and half of it is copied locally. Three versions.
 */

#include "check.h"

#include <pthread.h>

#define RANKS 2
#define ROWS 6
#define COLUMNS 8
#define VERSIONS 3

static const char source_json[] =
    "{\"weightsync_layout\": 1, \"ranks\": {\"first\": 0, \"count\": 2},"
    " \"meshes\": {\"m\": [[\"tp\", 2]]},"
    " \"tensors\": [{\"name\": \"w\", \"shape\": [6, 8], \"dtype\": \"f32\","
    "  \"cuts\": [{\"dim\": 0, \"axes\": [\"tp\"]}]}]}";

static const char destination_json[] =
    "{\"weightsync_layout\": 1, \"ranks\": {\"first\": 0, \"count\": 2},"
    " \"meshes\": {\"m\": [[\"tp\", 2]]},"
    " \"tensors\": [{\"name\": \"w\", \"shape\": [6, 8], \"dtype\": \"f32\","
    "  \"cuts\": [{\"dim\": 1, \"axes\": [\"tp\"]}]}]}";

/* What the threads share. */
static const wsync_plan *shared_plan;
static wsync_bytes greetings[RANKS];

typedef struct rank_state {
  uint32_t rank;
  wsync_transport *transport;
  uint64_t digest;
} rank_state;

/* The value of an element, different in each version. */
static float element(unsigned version, unsigned row, unsigned column) {
  return (float)(1000u * version + 10u * row + column + 1u);
}

static float *allocate(const wsync_plan *plan, uint32_t rank, uint32_t side,
                       wsync_session *session) {
  wsync_error err = WSYNC_ERROR_INIT;
  size_t count = wsync_plan_buffer_count(plan, rank);
  for (size_t i = 0; i < count; i++) {
    wsync_buffer_info info = WSYNC_BUFFER_INFO_INIT;
    OK(err, wsync_plan_buffer_at(plan, rank, i, &info, &err));
    CHECK(info.memory == WSYNC_MEMORY_HOST);
    CHECK(info.name_bytes == strlen(info.name));
    if (info.side == side) {
      float *memory = (float *)calloc(1, (size_t)info.bytes);
      CHECK(memory != NULL);
      CHECK(info.bytes == sizeof(float) * ROWS * COLUMNS / RANKS);
      OK(err, wsync_session_bind(session, side, info.name, memory, info.bytes,
                                 info.memory, info.device, &err));
      return memory;
    }
  }
  CHECK(!"the rank has a buffer on this side");
  return NULL;
}

static void one_version(unsigned version, uint32_t rank, wsync_request *request,
                        float *source, const float *destination) {
  wsync_error err = WSYNC_ERROR_INIT;
  wsync_request_options options = WSYNC_REQUEST_OPTIONS_INIT;
  uint32_t rank_outcome = 0;
  uint32_t copy_outcome = 0;

  for (unsigned row = 0; row < ROWS / RANKS; row++) {
    for (unsigned column = 0; column < COLUMNS; column++) {
      source[row * COLUMNS + column] =
          element(version, rank * (ROWS / RANKS) + row, column);
    }
  }

  options.version = version;
  options.flags = WSYNC_REQUEST_FLAG_VERIFY;
  OK(err, wsync_request_prepare(request, &options, &err));
  OK(err, wsync_request_wait_ready(request, SECONDS(60), &err));
  CHECK(wsync_request_state(request) == WSYNC_STATE_READY);
  EXPECT(WSYNC_ERR_INVALID_STATE, err,
         wsync_request_outcome(request, &rank_outcome, &copy_outcome, &err));
  CHECK(rank_outcome == 0 && copy_outcome == 0);
  OK(err, wsync_request_start(request, NULL, &err));
  OK(err, wsync_request_wait(request, SECONDS(60), &err));
  OK(err, wsync_request_test(request, &err));
  CHECK(wsync_request_state(request) == WSYNC_STATE_DONE);
  CHECK(wsync_request_steps_done(request) == wsync_request_step_count(request));

  OK(err, wsync_request_outcome(request, &rank_outcome, &copy_outcome, &err));
  CHECK(rank_outcome == WSYNC_OUTCOME_COMPLETE);
  CHECK(copy_outcome == WSYNC_OUTCOME_COMPLETE);

  for (unsigned row = 0; row < ROWS; row++) {
    for (unsigned column = 0; column < COLUMNS / RANKS; column++) {
      float got = destination[row * (COLUMNS / RANKS) + column];
      float wanted = element(version, row, rank * (COLUMNS / RANKS) + column);
      CHECK(got <= wanted && got >= wanted);
    }
  }
}

static void *run(void *argument) {
  rank_state *state = (rank_state *)argument;
  wsync_error err = WSYNC_ERROR_INIT;
  wsync_session *session = NULL;
  wsync_request *request = NULL;
  uint32_t slot = 0;
  float *source;
  float *destination;
  char *report;
  size_t needed = 0;

  OK(err, wsync_transport_meet(state->transport, greetings, RANKS, SECONDS(60), &err));
  OK(err, wsync_transport_status(state->transport, &err));
  OK(err, wsync_session_create(state->transport, NULL, &session, &err));
  source = allocate(shared_plan, state->rank, WSYNC_SIDE_SOURCE, session);
  destination = allocate(shared_plan, state->rank, WSYNC_SIDE_DESTINATION, session);
  OK(err, wsync_session_load(session, shared_plan, &slot, &err));
  OK(err, wsync_request_create(session, slot, &request, &err));
  CHECK(wsync_request_state(request) == WSYNC_STATE_IDLE);

  for (unsigned version = 1; version <= VERSIONS; version++) {
    one_version(version, state->rank, request, source, destination);
  }
  OK(err, wsync_request_tensor_digest(request, "w", &state->digest, &err));

  OK(err, wsync_request_report(request, NULL, 0, &needed, &err));
  report = (char *)malloc(needed);
  CHECK(report != NULL);
  OK(err, wsync_request_report(request, report, needed, &needed, &err));
  CHECK(strlen(report) + 1 == needed);
  CHECK(strstr(report, "\"version\":3") != NULL);
  free(report);

  OK(err, wsync_session_finalize(session, SECONDS(60), &err));
  wsync_request_destroy(request);
  OK(err, wsync_transport_finalize(state->transport, SECONDS(60), &err));
  wsync_session_destroy(session);
  wsync_transport_destroy(state->transport);
  free(source);
  free(destination);
  return NULL;
}

static wsync_plan *make_plan(void) {
  wsync_error err = WSYNC_ERROR_INIT;
  wsync_layout *source = NULL;
  wsync_layout *destination = NULL;
  wsync_plan *plan = NULL;
  wsync_program_info info = WSYNC_PROGRAM_INFO_INIT;
  uint32_t last_step = WSYNC_STEP_NONE;

  OK(err, wsync_layout_create_from_json(source_json, strlen(source_json), &source, &err));
  OK(err, wsync_layout_create_from_json(destination_json, strlen(destination_json),
                                        &destination, &err));
  CHECK(wsync_layout_rank_count(source) == RANKS);
  CHECK(wsync_layout_tensor_count(source) == 1);
  CHECK(wsync_layout_copy_count(destination) == 1);
  OK(err, wsync_plan_create(source, destination, NULL, &plan, &err));
  wsync_layout_destroy(source);
  wsync_layout_destroy(destination);

  OK(err, wsync_plan_verify(plan, &err));
  OK(err, wsync_plan_program_info(plan, 0, &info, &err));
  const uint32_t twice[] = {0, 0};
  wsync_program_info infos[2];
  OK(err, wsync_plan_program_infos(plan, twice, 2, infos, sizeof *infos, &err));
  CHECK(memcmp(&infos[0], &info, sizeof info) == 0);
  CHECK(memcmp(&infos[1], &info, sizeof info) == 0);
  OK(err, wsync_plan_program_infos(plan, NULL, 0, NULL, 0, &err));
  CHECK(wsync_plan_program_infos(plan, twice, 2, infos, 12, &err) == WSYNC_ERR_INVALID_ARGUMENT);
  CHECK(info.bytes_sent == 3 * 4 * sizeof(float));
  CHECK(info.bytes_received == info.bytes_sent);
  CHECK(info.bytes_local == info.bytes_sent);
  CHECK(info.peer_count == 1);
  CHECK(info.buffer_count == 2);
  OK(err, wsync_plan_tensor_last_step(plan, 1, "w", &last_step, &err));
  CHECK(last_step < wsync_plan_step_count(plan));
  return plan;
}

int main(void) {
  wsync_error err = WSYNC_ERROR_INIT;
  rank_state states[RANKS];
  pthread_t threads[RANKS];
  unsigned char blobs[RANKS][WSYNC_GREETING_BYTES_MAX];
  wsync_plan *plan;

  CHECK(wsync_header_matches());
  plan = make_plan();
  shared_plan = plan;

  for (uint32_t rank = 0; rank < RANKS; rank++) {
    wsync_transport_options options = WSYNC_TRANSPORT_OPTIONS_INIT;
    size_t needed = 0;
    options.kind = WSYNC_TRANSPORT_KIND_LOOPBACK;
    options.rank = rank;
    options.rank_count = RANKS;
    states[rank].rank = rank;
    states[rank].transport = NULL;
    states[rank].digest = 0;
    OK(err, wsync_transport_create(&options, &states[rank].transport, &err));
    OK(err, wsync_transport_greeting(states[rank].transport, blobs[rank],
                                     sizeof blobs[rank], &needed, &err));
    CHECK(needed > 0 && needed <= sizeof blobs[rank]);
    greetings[rank].ptr = blobs[rank];
    greetings[rank].bytes = needed;
    CHECK(wsync_transport_rank(states[rank].transport) == rank);
    CHECK(wsync_transport_rank_count(states[rank].transport) == RANKS);
  }
  for (uint32_t rank = 0; rank < RANKS; rank++) {
    CHECK(pthread_create(&threads[rank], NULL, run, &states[rank]) == 0);
  }
  for (uint32_t rank = 0; rank < RANKS; rank++) {
    CHECK(pthread_join(threads[rank], NULL) == 0);
  }
  CHECK(states[0].digest == states[1].digest);
  CHECK(states[0].digest != 0);
  wsync_plan_destroy(plan);
  puts("three versions delivered");
  return 0;
}
