#include "stream.h"

#include <chrono>
#include <cstdlib>
#include <random>
#include <thread>

namespace fake {
namespace {

/// Microseconds that work may be held back at most.
unsigned jitter() {
  static const unsigned value = [] {
    const char *text = getenv("FAKE_GPU_JITTER_US");
    return text == nullptr ? 30u : static_cast<unsigned>(atoi(text));
  }();
  return value;
}

} // namespace

Stream::Stream(int device, bool) : device(device), queue(std::make_shared<Queue>()) {
  std::thread(run, queue).detach();
}

void Stream::push(std::function<void()> work) {
  std::lock_guard guard(queue->lock);
  queue->work.push_back(std::move(work));
  queue->changed.notify_all();
}

bool Stream::is_idle() {
  std::lock_guard guard(queue->lock);
  return queue->work.empty() && !queue->is_running;
}

void Stream::wait_idle() {
  std::unique_lock guard(queue->lock);
  queue->changed.wait(guard, [&] { return queue->work.empty() && !queue->is_running; });
}

void Stream::close() {
  std::lock_guard guard(queue->lock);
  queue->is_closed = true;
  queue->changed.notify_all();
}

void Stream::run(std::shared_ptr<Queue> queue) {
  std::minstd_rand random(static_cast<unsigned>(reinterpret_cast<uintptr_t>(queue.get()) >> 4));
  std::unique_lock guard(queue->lock);
  for (;;) {
    queue->changed.wait(guard, [&] { return !queue->work.empty() || queue->is_closed; });
    if (queue->work.empty())
      return;
    auto work = std::move(queue->work.front());
    queue->work.pop_front();
    queue->is_running = true;
    guard.unlock();
    if (jitter() > 0)
      std::this_thread::sleep_for(std::chrono::microseconds(random() % jitter()));
    work();
    work = nullptr;
    guard.lock();
    queue->is_running = false;
    queue->changed.notify_all();
  }
}

} // namespace fake
