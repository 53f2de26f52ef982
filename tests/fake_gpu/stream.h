// Streams and events of the stand-in.

#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>

namespace fake {

/// One thread, one queue. Work begins after a little while that is never the
/// same, so that code which forgets to wait finds old bytes.
class Stream {
public:
  Stream(int device, bool is_default);
  void push(std::function<void()> work);
  /// Everything that was put here before is done.
  bool is_idle();
  void wait_idle();
  /// The thread ends when the queue is empty.
  void close();

  const int device;
  bool is_capturing = false;

private:
  struct Queue {
    std::mutex lock;
    std::condition_variable changed;
    std::deque<std::function<void()>> work;
    bool is_running = false;
    bool is_closed = false;
  };
  static void run(std::shared_ptr<Queue> queue);
  std::shared_ptr<Queue> queue;
};

struct EventState {
  std::mutex lock;
  std::condition_variable changed;
  uint64_t recorded = 0;
  uint64_t reached = 0;
  double seconds = 0;
};

struct Event {
  std::shared_ptr<EventState> state = std::make_shared<EventState>();
};

} // namespace fake
