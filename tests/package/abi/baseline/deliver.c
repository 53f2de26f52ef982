/* One trainer (rank 0) and two servers (ranks 1 and 2) of tensor parallel 2, as
 * processes of one host: deliver 0 & deliver 1 & deliver 2 */

#include <weightsync.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char trainer_json[] =
    "{\"weightsync_layout\": 1, \"ranks\": {\"first\": 0, \"count\": 1},"
    " \"tensors\": [{\"name\": \"w\", \"shape\": [1024, 512], \"dtype\": \"bf16\"}]}";
static const char server_json[] =
    "{\"weightsync_layout\": 1, \"ranks\": {\"first\": 1, \"count\": 2},"
    " \"meshes\": {\"m\": [[\"tp\", 2]]},"
    " \"tensors\": [{\"name\": \"w\", \"shape\": [1024, 512], \"dtype\": \"bf16\","
    "              \"cuts\": [{\"dim\": 0, \"axes\": [\"tp\"]}]}]}";

static wsync_error err = WSYNC_ERROR_INIT;

static void must(wsync_status status) {
  if (status == WSYNC_OK) return;
  fprintf(stderr, "%s: %s\n", wsync_status_name(status), err.message);
  exit(1);
}

int main(int argc, char **argv) {
  const uint64_t minute = 60000000000u;
  const char *address = argc > 2 ? argv[2] : "127.0.0.1:29400";
  wsync_layout *trainer, *server;
  wsync_plan *plan;
  wsync_transport *transport;
  wsync_session *session;
  wsync_request *request;
  wsync_transport_options where = WSYNC_TRANSPORT_OPTIONS_INIT;
  wsync_request_options what = WSYNC_REQUEST_OPTIONS_INIT;
  wsync_buffer_info buffer = WSYNC_BUFFER_INFO_INIT;
  uint32_t slot, rank_outcome, copy_outcome;
  char *weights;

  where.kind = WSYNC_TRANSPORT_KIND_SHM;
  where.rank = (uint32_t)(argc > 1 ? atoi(argv[1]) : 0);
  where.rank_count = 3;
  must(wsync_layout_create_from_json(trainer_json, strlen(trainer_json), &trainer, &err));
  must(wsync_layout_create_from_json(server_json, strlen(server_json), &server, &err));
  must(wsync_plan_create(trainer, server, NULL, &plan, &err));

  must(wsync_transport_create(&where, &transport, &err));
  must(wsync_transport_rendezvous(transport, address, "a shared secret", 15, minute, &err));
  must(wsync_session_create(transport, NULL, &session, &err));
  must(wsync_plan_buffer_at(plan, where.rank, 0, &buffer, &err));
  weights = calloc(1, buffer.bytes);
  must(wsync_session_bind(session, buffer.side, buffer.name, weights, buffer.bytes,
                          WSYNC_MEMORY_HOST, 0, &err));
  must(wsync_session_load(session, plan, &slot, &err));
  must(wsync_request_create(session, slot, &request, &err));

  for (what.version = 1; what.version <= 3; what.version++) {
    if (where.rank == 0) memset(weights, (int)what.version, buffer.bytes); /* Train. */
    must(wsync_request_submit(request, &what, NULL, &err));
    must(wsync_request_wait(request, WSYNC_NO_DEADLINE, &err));
    must(wsync_request_outcome(request, &rank_outcome, &copy_outcome, &err));
    if (copy_outcome != WSYNC_OUTCOME_COMPLETE) return 1;
    printf("rank %u has version %d\n", where.rank, weights[buffer.bytes - 1]); /* Serve. */
  }

  must(wsync_transport_finalize(transport, minute, &err));
  wsync_request_destroy(request);
  wsync_session_destroy(session);
  wsync_transport_destroy(transport);
  wsync_plan_destroy(plan);
  wsync_layout_destroy(server);
  wsync_layout_destroy(trainer);
  free(weights);
  return 0;
}
