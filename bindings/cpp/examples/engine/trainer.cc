// Two trainer ranks, each with half of the rows, as fully sharded data
// parallelism leaves them. Every step gives a new version of the weights.
//
//   trainer FOLDER ADDRESS VERSIONS [DIES_AT]
//
// With DIES_AT, rank 1 vanishes while that version is on its way.

#include "model.hpp"

#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

using namespace std::chrono_literals;
using namespace weightsync;

struct Shard {
  std::vector<float> up = std::vector<float>(kHidden / 2 * kInput);
  std::vector<float> down = std::vector<float>(kInput / 2 * kHidden);

  void train(int version, int rank) {
    for (int r = 0; r < kHidden / 2; r++)
      for (int c = 0; c < kInput; c++)
        up[r * kInput + c] = up_weight(version, rank * kHidden / 2 + r, c);
    for (int r = 0; r < kInput / 2; r++)
      for (int c = 0; c < kHidden; c++)
        down[r * kHidden + c] = down_weight(version, rank * kInput / 2 + r, c);
    std::this_thread::sleep_for(30ms); // Training takes a while.
  }
};

static int run_rank(int rank, char **argv, int versions, int dies_at) try {
  const Plan plan = make_plan(argv[1]);
  auto transport = Transport::create(TransportKind::shm, static_cast<std::uint32_t>(rank), 4);
  transport.rendezvous(argv[2], "a shared secret", 60s);
  auto session = Session::create(transport);
  Shard shard;
  session.bind(Side::source, "mlp.up.weight", shard.up.data(), shard.up.size() * sizeof(float));
  session.bind(Side::source, "mlp.down.weight", shard.down.data(),
               shard.down.size() * sizeof(float));
  auto request = Request::create(session, session.load(plan));
  for (int version = 1; version <= versions; version++) {
    shard.train(version, rank);
    request.submit(RequestOptions(static_cast<std::uint64_t>(version)));
    if (version == dies_at && rank == 1) _exit(0);
    request.wait();
  }
  transport.finalize(60s);
  return 0;
} catch (const std::exception &e) {
  std::fprintf(stderr, "trainer rank %d: %s\n", rank, e.what());
  return dies_at > 0 ? 0 : 1;
}

int main(int argc, char **argv) {
  if (argc < 4) {
    std::fprintf(stderr, "usage: trainer FOLDER ADDRESS VERSIONS [DIES_AT]\n");
    return 2;
  }
  const int versions = std::atoi(argv[3]);
  const int dies_at = argc > 4 ? std::atoi(argv[4]) : 0;
  return run_two_processes([&](int rank) { return run_rank(rank, argv, versions, dies_at); });
}
