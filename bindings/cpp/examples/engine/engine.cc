// An inference engine of tensor parallel 2 that takes new weights while it
// serves. Two processes; in each, one thread serves and one receives.
//
//   engine FOLDER ADDRESS VERSIONS
//
//            slot 0    serving version 4     <- both ranks read it
//            slot 1    receiving version 5   <- the library writes it
//
// A version is served once it is COMPLETE for the whole copy, that is, on both
// ranks; then the slots change places. Two things keep a slot that is read from
// being written:
//
// - Rank 0 decides the version of every answer and tells rank 1. It turns to the
//   new one only between two answers.
// - A request is prepared before it starts, and it is READY once every rank has
//   prepared it. Rank 0 prepares version n + 1 only after it turned to n, so once
//   that is READY nobody asks for n - 1, in whose slot n + 1 will be written.

#include "model.hpp"

#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <sys/socket.h>
#include <thread>
#include <vector>

using namespace std::chrono_literals;
using namespace weightsync;

constexpr int kRows = kHidden / 2; // Of the hidden layer, on one rank.

/** One rank's half of the weights, in bf16 as the engine's kernels want them. */
struct Weights {
  int version = 0;
  std::vector<std::uint16_t> up = std::vector<std::uint16_t>(kRows * kInput);
  std::vector<std::uint16_t> down = std::vector<std::uint16_t>(kInput * kRows);

  static float value(std::uint16_t bits) {
    const std::uint32_t wide = std::uint32_t{bits} << 16;
    float out;
    static_assert(sizeof out == sizeof wide, "float has 32 bits");
    __builtin_memcpy(&out, &wide, sizeof out);
    return out;
  }

  /** This rank's part of the answer; the parts of both ranks add up to it. */
  Vector partial_answer(const Vector &x) const {
    Vector y{};
    for (int h = 0; h < kRows; h++) {
      float sum = 0;
      for (int i = 0; i < kInput; i++) sum += value(up[h * kInput + i]) * x[i];
      if (sum <= 0) continue;
      for (int i = 0; i < kInput; i++) y[i] += value(down[i * kRows + h]) * sum;
    }
    return y;
  }
};

/** What goes between the two ranks for one answer. */
struct Question {
  int version; // 0: no more questions.
  Vector x;
};
struct Partial {
  bool has_version;
  Vector y;
};

template <class T> void send_all(int fd, const T &value) {
  if (send(fd, &value, sizeof value, MSG_NOSIGNAL) != static_cast<ssize_t>(sizeof value))
    throw std::runtime_error("the other rank is gone");
}

template <class T> T receive_all(int fd) {
  T value;
  if (recv(fd, &value, sizeof value, MSG_WAITALL) != static_cast<ssize_t>(sizeof value))
    throw std::runtime_error("the other rank is gone");
  return value;
}

class Engine {
public:
  Engine(int rank, int peer) : rank_(rank), peer_(peer) {}

  /** Takes version after version; ends with the last one or the first failure. */
  void receive(const std::string &folder, const char *address, int versions) {
    try {
      const Plan plan = make_plan(folder);
      auto transport =
          Transport::create(TransportKind::shm, static_cast<std::uint32_t>(2 + rank_), 4);
      transport.rendezvous(address, "a shared secret", 60s);
      auto session = Session::create(transport);
      std::uint32_t slot = 0;
      Request request;
      for (int version = 1; version <= versions; version++) {
        Weights &standby = weights_[version % 2];
        session.bind(Side::destination, "mlp.up.weight", standby.up.data(),
                     standby.up.size() * sizeof(std::uint16_t));
        session.bind(Side::destination, "mlp.down.weight", standby.down.data(),
                     standby.down.size() * sizeof(std::uint16_t));
        if (version == 1) {
          slot = session.load(plan);
          request = Request::create(session, slot);
        }
        request.prepare(RequestOptions(static_cast<std::uint64_t>(version)));
        request.wait_ready();
        invalidate(standby);
        request.start();
        request.wait();
        if (request.outcome().copy != Outcome::complete) {
          throw std::runtime_error("version " + std::to_string(version) + " is not COMPLETE");
        }
        turn_to(standby, version);
      }
      transport.finalize(60s);
    } catch (const std::exception &e) {
      std::fprintf(stderr, "engine rank %d stays at its version: %s\n", rank_ + 2, e.what());
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    receiving_ = false;
    changed_.notify_all();
  }

  /** Answers questions until nothing new can come; the number of wrong answers. */
  int serve() { return rank_ == 0 ? serve_first() : serve_second(); }

private:
  /** The slot is about to be written: it holds no version. */
  void invalidate(Weights &weights) {
    const std::lock_guard<std::mutex> lock(mutex_);
    weights.version = 0;
  }

  /** New answers come from `weights`. Waits for the one under way. */
  void turn_to(Weights &weights, int version) {
    std::unique_lock<std::mutex> lock(mutex_);
    weights.version = version;
    serving_ = version;
    changed_.notify_all();
    // Only so that the test sees answers of every version.
    if (rank_ == 0) changed_.wait_for(lock, 10s, [&] { return answers_ >= 5 * version; });
  }

  const Weights *find(int version) const {
    for (const Weights &w : weights_)
      if (w.version == version) return &w;
    return nullptr;
  }

  /** Rank 0: asks itself and rank 1, adds up, and checks. */
  int serve_first() {
    int wrong = 0;
    std::vector<int> per_version;
    int rest = 20; // Answers after the last version, or after a failure.
    for (int n = 0; rest > 0; n++) {
      std::unique_lock<std::mutex> lock(mutex_);
      changed_.wait(lock, [&] { return serving_ > 0 || !receiving_; });
      if (serving_ == 0) break;
      if (!receiving_) rest--;
      // The lock is held until the answer is there: nobody turns meanwhile.
      const Vector x = prompt(n);
      send_all(peer_, Question{serving_, x});
      Vector y = find(serving_)->partial_answer(x);
      const auto partial = receive_all<Partial>(peer_);
      if (!partial.has_version) {
        serving_--; // Rank 1 did not come that far, and never will: it failed.
        continue;
      }
      for (int i = 0; i < kInput; i++) y[i] += partial.y[i];
      if (y != expected_answer(serving_, x)) wrong++;
      per_version.resize(static_cast<std::size_t>(serving_) + 1);
      per_version[static_cast<std::size_t>(serving_)]++;
      answers_++;
      changed_.notify_all();
      lock.unlock();
      std::this_thread::sleep_for(200us); // Until the next prompt.
    }
    send_all(peer_, Question{0, {}});
    for (std::size_t v = 1; v < per_version.size(); v++)
      std::printf("version %zu: %d answers\n", v, per_version[v]);
    std::printf("serving version %d, %d answers wrong\n", serving_, wrong);
    return wrong;
  }

  /** Rank 1: answers what rank 0 asks. */
  int serve_second() {
    for (;;) {
      const auto question = receive_all<Question>(peer_);
      if (question.version == 0) return 0;
      std::unique_lock<std::mutex> lock(mutex_);
      // Rank 0 may know first that the version is there.
      changed_.wait(lock, [&] { return find(question.version) || !receiving_; });
      const Weights *weights = find(question.version);
      Partial partial{weights != nullptr, {}};
      if (weights) partial.y = weights->partial_answer(question.x);
      lock.unlock();
      send_all(peer_, partial);
    }
  }

  const int rank_;
  const int peer_;
  Weights weights_[2];
  std::mutex mutex_; // Of what follows, and of Weights::version.
  std::condition_variable changed_;
  int serving_ = 0;
  int answers_ = 0;
  bool receiving_ = true;
};

static int run_rank(int rank, int peer, char **argv) {
  Engine engine(rank, peer);
  std::thread receiver([&] { engine.receive(argv[1], argv[2], std::atoi(argv[3])); });
  int wrong = 1;
  try {
    wrong = engine.serve();
  } catch (const std::exception &e) {
    std::fprintf(stderr, "rank %d: %s\n", rank, e.what());
  }
  receiver.join();
  return wrong == 0 ? 0 : 1;
}

int main(int argc, char **argv) {
  int ends[2];
  if (argc < 4) {
    std::fprintf(stderr, "usage: engine FOLDER ADDRESS VERSIONS\n");
    return 2;
  }
  if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0) return 1;
  return run_two_processes([&](int rank) { return run_rank(rank, ends[rank], argv); });
}
