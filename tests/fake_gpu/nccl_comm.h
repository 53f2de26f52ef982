// A communicator of the stand-in NCCL.
//
//   rank a                                   rank b
//   stream: kernel of a group                stream: kernel of a group
//     sends ── frame ──► socket ──► I/O thread ──► inbox ──► receives
//     waits for the echo ◄──────────────────────────── "taken" ┘
//
// A send is over when its receive has taken it, so that what deadlocks on the
// real one deadlocks here. Operations of a group run in an order that is never
// the same, except those to one peer.

#pragma once

#include "nccl_wire.h"

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace fake_nccl {

/// The values of ncclResult_t.
enum Result : int {
  SUCCESS = 0,
  CUDA_ERROR = 1,
  SYSTEM_ERROR = 2,
  INTERNAL_ERROR = 3,
  INVALID_ARGUMENT = 4,
  INVALID_USAGE = 5,
  REMOTE_ERROR = 6,
  IN_PROGRESS = 7,
};

/// One send or receive.
struct Op {
  bool is_send;
  char *buffer;
  size_t bytes;
  int peer;
  void *stream;
};

/// What a rank tells the others when they meet.
struct Card {
  int rank = 0;
  int count = 0;
  int version = 0;
  int device = 0;
  int color = 0;
  int key = 0;
  bool shares_gpu = false;
  char host[64] = {};
  char listen[64] = {};
};

enum FrameKind : uint32_t { DATA, TAKEN, MEET };

struct Frame {
  FrameKind kind;
  std::vector<char> bytes;
};

struct Peer {
  Socket socket;
  std::mutex sending;
  // Under the communicator's lock.
  std::deque<std::vector<char>> inbox;
  std::deque<std::vector<char>> meetings;
  uint64_t taken = 0;
  bool is_gone = false;
};

/// What a rank shall do wrong, when it begins its `group`-th group.
struct Fault {
  int rank;
  uint64_t group;
  enum Kind { HANG, DIE, ERROR, DELAY } kind;
  int value;
};

class Comm : public std::enable_shared_from_this<Comm> {
public:
  Comm(int rank, int count, int device, bool blocking);
  ~Comm();

  /// Joins through the root of an id. Blocks; may be stopped.
  Result meet(const std::string &root, Card card);
  /// Makes `child` together with those of `participants` that have the same
  /// color. Blocks; may be stopped.
  Result make_child(Comm &child, const std::vector<int> &participants, Card card);

  /// Puts a group on its stream.
  Result launch(std::vector<Op> ops);
  /// Ends what runs; nothing runs later either.
  void stop_work();
  /// The same, for good, and the communicator stays.
  void revoke();
  /// Waits until everything launched has run.
  bool is_idle();
  void wait_idle();

  const int device;
  bool blocking;
  int rank;
  int count;

  /// What ncclCommGetAsyncError says. Groups leave an error as it is: they go
  /// from one of the two other states only.
  std::atomic<int> state{SUCCESS};
  void go(int from, int to) { state.compare_exchange_strong(from, to); }
  /// A group that waits to be polled into its stream.
  std::vector<Op> pending;
  int polls_left = 0;
  bool is_finalizing = false;
  std::atomic<bool> stop{false};
  std::atomic<bool> is_revoked{false};
  bool is_revoking = false;
  /// Initialisation that goes on beside its caller.
  std::thread builder;
  std::atomic<bool> is_building{false};
  /// The thread that is inside NCCL with this communicator.
  std::mutex user;

private:
  struct Job {
    std::shared_ptr<Comm> comm;
    std::vector<Op> ops;
    uint64_t index;
  };
  static void run(void *job);
  void run(Job &job);
  bool suffer(uint64_t group);
  void hang();
  bool send(const Op &op);
  bool take(const Op &op);
  bool post(int peer, FrameKind kind, const void *data, size_t bytes);
  Result join(const std::vector<Card> &cards, const Socket &listener);
  void listen_to_peers();

  std::mutex lock;
  std::condition_variable changed;
  std::vector<std::unique_ptr<Peer>> peers;
  std::thread reader;
  uint64_t launched = 0;
  uint64_t finished = 0;
};

/// What a message to people is kept in: ncclGetLastError.
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
/// The caller does what makes the real one crash or hang: the process ends.
[[noreturn]] void misuse(const char *format, ...) __attribute__((format(printf, 1, 2)));

int version();
void add_fault(Fault fault);
bool find_fault(int rank, uint64_t group, Fault &fault);
void count_call(const char *name);

/// What the stand-in CUDA runtime offers; it is in the process by then.
struct Gpu {
  int (*enqueue)(void *stream, void (*run)(void *), void *argument);
  void *(*host)(const void *pointer, size_t bytes);
  int (*current_device)();
  int (*stream_device)(void *stream);
  void (*fault)(int error);
};
/// NULL if there is no stand-in CUDA runtime in the process.
const Gpu *gpu();

/// Starts to collect the ranks of a new communicator; the name to meet at.
std::string open_root();

} // namespace fake_nccl
