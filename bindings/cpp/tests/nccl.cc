// A delivery over NCCL between two threads that share a GPU: with a unique id, and
// with communicators of the caller's. On the stand-ins, which the environment
// names: WSYNC_CUDART_LIBRARY, WSYNC_CUDA_LIBRARY, WSYNC_NCCL_LIBRARY.

#include "check.hpp"

#include <weightsync/weightsync.hpp>

#include <array>
#include <cstring>
#include <dlfcn.h>
#include <functional>
#include <numeric>
#include <string>
#include <thread>

using namespace std::chrono_literals;
namespace ws = weightsync;

namespace {

constexpr std::size_t element_count = 48;
using Values = std::array<float, element_count>;

/// A function of the library that a variable names.
template <class F> F *function(const char *variable, const char *name) {
  void *library = dlopen(std::getenv(variable), RTLD_NOW);
  CHECK(library != nullptr);
  void *symbol = dlsym(library, name);
  CHECK(symbol != nullptr);
  F *out;
  std::memcpy(&out, &symbol, sizeof out);
  return out;
}

template <class F> F *cuda(const char *name) { return function<F>("WSYNC_CUDART_LIBRARY", name); }
template <class F> F *nccl(const char *name) { return function<F>("WSYNC_NCCL_LIBRARY", name); }

/// A stream of a rank's own. One that two ranks share would order the end of the
/// one's transfer before the beginning of the other's.
class OwnStream {
public:
  OwnStream() {
    const auto create = cuda<int(void **, unsigned)>("cudaStreamCreateWithFlags");
    CHECK(create(&at, 1) == 0);
  }
  ~OwnStream() { cuda<int(void *)>("cudaStreamDestroy")(at); }
  OwnStream(const OwnStream &) = delete;
  OwnStream &operator=(const OwnStream &) = delete;

  void *at = nullptr;
};

/// A tensor on the GPU. What is put there is put on `stream`.
class OnGpu {
public:
  explicit OnGpu(const OwnStream &own) : stream(own.at) {
    CHECK(cuda<int(void **, std::size_t)>("cudaMalloc")(&at, sizeof(Values)) == 0);
  }
  ~OnGpu() { cuda<int(void *)>("cudaFree")(at); }
  OnGpu(const OnGpu &) = delete;
  OnGpu &operator=(const OnGpu &) = delete;

  void put(const Values &values) { copy(at, values.data()); }
  Values get() const {
    Values out{};
    copy(out.data(), at);
    return out;
  }

  void *at = nullptr;

private:
  void copy(void *to, const void *from) const {
    const auto copy = cuda<int(void *, const void *, std::size_t, int, void *)>("cudaMemcpyAsync");
    CHECK(copy(to, from, sizeof(Values), 4, stream) == 0);
    CHECK(cuda<int(void *)>("cudaStreamSynchronize")(stream) == 0);
  }

  void *stream;
};

std::string layout(int rank) {
  return R"({"weightsync_layout": 1, "ranks": {"first": )" + std::to_string(rank) +
         R"(, "count": 1}, "tensors": [{"name": "w", "shape": [6, 8], "dtype": "f32",
            "memory": {"device": 0}}]})";
}

/// Rank 0 sends what rank 1 gets.
void deliver(std::uint32_t rank, ws::Transport &transport) {
  const auto plan =
      ws::Plan::create(ws::Layout::from_json(layout(0)), ws::Layout::from_json(layout(1)));
  const OwnStream stream;
  OnGpu weights(stream);
  ws::Session session = ws::Session::create(transport);
  const auto side = rank == 0 ? ws::Side::source : ws::Side::destination;
  session.bind(side, "w", weights.at, sizeof(Values), ws::Memory::device, 0);
  ws::Request request = ws::Request::create(session, session.load(plan));
  for (int version = 1; version <= 2; version++) {
    Values values{};
    std::iota(values.begin(), values.end(), 1000.0f * static_cast<float>(version));
    if (rank == 0) weights.put(values);
    request.submit(ws::RequestOptions(static_cast<std::uint64_t>(version)), stream.at);
    CHECK(request.wait());
    CHECK(request.outcome().copy == ws::Outcome::complete);
    CHECK(weights.get() == values);
  }
  transport.finalize(60s);
}

void on_both_ranks(const std::function<void(std::uint32_t)> &run) {
  std::thread other(run, 1);
  run(0);
  other.join();
}

/// Delivers over transports that are made with these options.
void deliver_over(const std::array<ws::NcclOptions, 2> &options) {
  std::array<ws::Transport, 2> transports;
  std::vector<std::vector<std::uint8_t>> greetings;
  for (std::uint32_t rank = 0; rank < 2; rank++) {
    transports[rank] = ws::Transport::create(options[rank], rank, 2);
    greetings.push_back(transports[rank].greeting());
  }
  on_both_ranks([&](std::uint32_t rank) {
    transports[rank].meet(greetings, 60s);
    deliver(rank, transports[rank]);
  });
}

void delivers_with_a_unique_id() {
  const ws::NcclId id = ws::Transport::nccl_id();
  deliver_over({ws::NcclOptions(id), ws::NcclOptions(id)});
}

/// As NCCL takes it: by value.
struct UniqueId {
  char bytes[WSYNC_NCCL_ID_BYTES];
};

void delivers_with_a_borrowed_communicator() {
  UniqueId id;
  CHECK(nccl<int(UniqueId *)>("ncclGetUniqueId")(&id) == 0);
  std::array<void *, 2> comms{};
  const auto join = nccl<int(void **, int, UniqueId, int)>("ncclCommInitRank");
  on_both_ranks([&](std::uint32_t rank) {
    CHECK(join(&comms[rank], 2, id, static_cast<int>(rank)) == 0);
  });
  for (const ws::NcclMode mode : {ws::NcclMode::split, ws::NcclMode::direct})
    deliver_over({ws::NcclOptions(mode, comms[0]), ws::NcclOptions(mode, comms[1])});
  for (void *comm : comms) CHECK(nccl<int(void *)>("ncclCommDestroy")(comm) == 0);
}

} // namespace

int main() {
  CHECK(ws::Transport::nccl_version() == 23007);
  delivers_with_a_unique_id();
  delivers_with_a_borrowed_communicator();
}
