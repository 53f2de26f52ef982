// One trainer (rank 0) and two servers (ranks 1 and 2) of tensor parallel 2, as
// processes of one host: deliver 0 & deliver 1 & deliver 2

#include <weightsync/weightsync.hpp>

#include <cstdio>
#include <cstdlib>
#include <vector>

using namespace std::chrono_literals;
using namespace weightsync;

int main(int argc, char **argv) try {
  const auto rank = static_cast<std::uint32_t>(argc > 1 ? std::atoi(argv[1]) : 0);
  const auto trainer = Layout::from_json(R"({"weightsync_layout": 1,
      "ranks": {"first": 0, "count": 1},
      "tensors": [{"name": "w", "shape": [1024, 512], "dtype": "bf16"}]})");
  const auto server = Layout::from_json(R"({"weightsync_layout": 1,
      "ranks": {"first": 1, "count": 2}, "meshes": {"m": [["tp", 2]]},
      "tensors": [{"name": "w", "shape": [1024, 512], "dtype": "bf16",
                   "cuts": [{"dim": 0, "axes": ["tp"]}]}]})");
  const auto plan = Plan::create(trainer, server);
  auto transport = Transport::create(TransportKind::shm, rank, 3);
  transport.rendezvous(argc > 2 ? argv[2] : "127.0.0.1:29400", "a shared secret", 60s);

  auto session = Session::create(transport);
  const auto buffer = plan.buffers(rank)[0];
  std::vector<std::uint8_t> weights(buffer.bytes);
  session.bind(*buffer.side, buffer.name, weights.data(), weights.size());
  auto request = Request::create(session, session.load(plan));
  for (std::uint8_t version = 1; version <= 3; version++) {
    if (rank == 0) weights.assign(weights.size(), version); // Train.
    request.submit(RequestOptions(version));
    request.wait();
    if (request.outcome().copy != Outcome::complete) return 1;
    std::printf("rank %u has version %d\n", rank, weights.back()); // Serve.
  }
  transport.finalize(60s);
} catch (const Error &e) {
  std::fprintf(stderr, "%s: %s\n", name(e.status()), e.what());
  return 1;
}
