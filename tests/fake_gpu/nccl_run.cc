// What happens on the stream.

#include "nccl_comm.h"

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <poll.h>
#include <random>
#include <unistd.h>

namespace fake_nccl {
namespace {

constexpr auto LOOK = std::chrono::milliseconds(2);

struct Head {
  uint32_t kind;
  uint64_t bytes;
};

/// A peer that dies is noticed as over the network, by an error of the
/// communicator. Else as over NVLink: not at all.
bool notices_death() {
  const char *text = getenv("FAKE_NCCL_PEER_DEATH");
  return text != nullptr && strcmp(text, "error") == 0;
}

} // namespace

Comm::Comm(int rank, int count, int device, bool blocking)
    : device(device), blocking(blocking), rank(rank), count(count) {}

Comm::~Comm() {
  stop = true;
  for (auto &peer : peers)
    peer->socket.shut();
  if (builder.joinable())
    builder.join();
  if (reader.joinable())
    reader.join();
}

/// The I/O thread: sorts what comes.
void Comm::listen_to_peers() {
  std::vector<pollfd> open;
  for (auto &peer : peers)
    open.push_back({peer->socket.fd, POLLIN, 0});
  while (!stop) {
    if (poll(open.data(), open.size(), 10) <= 0)
      continue;
    for (size_t i = 0; i < open.size(); i++) {
      if (open[i].fd < 0 || open[i].revents == 0)
        continue;
      Head head;
      std::vector<char> bytes;
      bool is_there = receive_all(open[i].fd, &head, sizeof head, stop);
      if (is_there) {
        bytes.resize(head.bytes);
        is_there = receive_all(open[i].fd, bytes.data(), bytes.size(), stop);
      }
      std::lock_guard guard(lock);
      Peer &peer = *peers[i];
      if (!is_there) {
        open[i].fd = -1;
        peer.is_gone = true;
      } else if (head.kind == DATA) {
        peer.inbox.push_back(std::move(bytes));
      } else if (head.kind == TAKEN) {
        peer.taken++;
      } else {
        peer.meetings.push_back(std::move(bytes));
      }
      changed.notify_all();
    }
  }
  std::lock_guard guard(lock);
  changed.notify_all();
}

bool Comm::post(int to, FrameKind kind, const void *data, size_t bytes) {
  Peer &peer = *peers[static_cast<size_t>(to)];
  if (to == rank) {
    std::lock_guard guard(lock);
    auto from = static_cast<const char *>(data);
    if (kind == DATA)
      peer.inbox.emplace_back(from, from + bytes);
    else
      peer.taken++;
    changed.notify_all();
    return true;
  }
  Head head = {kind, bytes};
  std::lock_guard guard(peer.sending);
  return send_all(peer.socket.fd, &head, sizeof head, stop) &&
         send_all(peer.socket.fd, data, bytes, stop);
}

Result Comm::launch(std::vector<Op> ops) {
  if (ops.empty())
    return SUCCESS;
  auto job = new Job{shared_from_this(), std::move(ops), 0};
  {
    std::lock_guard guard(lock);
    job->index = launched++;
  }
  if (int error = gpu()->enqueue(job->ops[0].stream, run, job); error != 0) {
    say("Cuda failure %d while a kernel was launched", error);
    delete job;
    std::lock_guard guard(lock);
    finished++;
    return CUDA_ERROR;
  }
  return SUCCESS;
}

void Comm::run(void *argument) {
  std::unique_ptr<Job> job(static_cast<Job *>(argument));
  auto comm = job->comm;
  comm->run(*job);
  std::lock_guard guard(comm->lock);
  comm->finished++;
  comm->changed.notify_all();
}

/// A kernel: all operations of a group, in no particular order.
void Comm::run(Job &job) {
  if (stop || is_revoked || !suffer(job.index))
    return;
  static thread_local std::minstd_rand random(static_cast<unsigned>(rank) * 7919u + 1);
  std::vector<std::deque<Op>> sends(static_cast<size_t>(count)), receives(sends);
  for (const Op &op : job.ops)
    (op.is_send ? sends : receives)[static_cast<size_t>(op.peer)].push_back(op);
  std::vector<uint64_t> taken_before(static_cast<size_t>(count));
  {
    std::lock_guard guard(lock);
    for (size_t i = 0; i < peers.size(); i++)
      taken_before[i] = peers[i]->taken;
  }
  std::vector<uint64_t> sent(static_cast<size_t>(count));
  for (;;) {
    if (stop || is_revoked)
      return;
    bool is_done = true, has_moved = false;
    size_t first = random() % static_cast<size_t>(count);
    for (size_t k = 0; k < static_cast<size_t>(count); k++) {
      size_t i = (first + k) % static_cast<size_t>(count);
      // A send may well read its bytes after a receive of the group has
      // written them, or before.
      if (!sends[i].empty() && random() % 2 == 0) {
        if (send(sends[i].front())) {
          sends[i].pop_front();
          sent[i]++;
          has_moved = true;
        }
      }
      if (!receives[i].empty() && take(receives[i].front())) {
        receives[i].pop_front();
        has_moved = true;
      }
      is_done = is_done && sends[i].empty() && receives[i].empty();
    }
    std::unique_lock guard(lock);
    for (size_t i = 0; i < peers.size(); i++) {
      bool is_waiting = !sends[i].empty() || !receives[i].empty() ||
                        peers[i]->taken < taken_before[i] + sent[i];
      is_done = is_done && !is_waiting;
      if (is_waiting && peers[i]->is_gone && notices_death())
        state = REMOTE_ERROR;
    }
    if (is_done)
      return;
    if (!has_moved)
      changed.wait_for(guard, LOOK);
  }
}

bool Comm::send(const Op &op) {
  void *from = gpu()->host(op.buffer, op.bytes);
  if (from == nullptr) {
    fprintf(stderr, "fake nccl: rank %d sends %zu bytes at %p, which no device can read\n", rank,
            op.bytes, static_cast<void *>(op.buffer));
    gpu()->fault(700);
    state = CUDA_ERROR;
    hang();
    return false;
  }
  return post(op.peer, DATA, from, op.bytes);
}

bool Comm::take(const Op &op) {
  std::vector<char> bytes;
  {
    std::lock_guard guard(lock);
    auto &inbox = peers[static_cast<size_t>(op.peer)]->inbox;
    if (inbox.empty())
      return false;
    bytes = std::move(inbox.front());
    inbox.pop_front();
  }
  void *to = gpu()->host(op.buffer, op.bytes);
  if (to == nullptr || bytes.size() != op.bytes) {
    fprintf(stderr, "fake nccl: rank %d receives %zu bytes from %d, which sent %zu\n", rank,
            op.bytes, op.peer, bytes.size());
    hang();
    return false;
  }
  memcpy(to, bytes.data(), bytes.size());
  post(op.peer, TAKEN, nullptr, 0);
  return true;
}

/// Does what it was told to do wrong; false if the kernel is over.
bool Comm::suffer(uint64_t group) {
  Fault fault;
  if (!find_fault(rank, group, fault))
    return true;
  switch (fault.kind) {
  case Fault::DIE:
    kill(getpid(), SIGKILL);
    return false;
  case Fault::DELAY:
    std::this_thread::sleep_for(std::chrono::milliseconds(fault.value));
    return true;
  case Fault::ERROR:
    say("a fault on command");
    state = fault.value;
    hang();
    return false;
  case Fault::HANG:
    hang();
    return false;
  }
  return true;
}

/// As a kernel that spins for a peer: until it is aborted.
void Comm::hang() {
  std::unique_lock guard(lock);
  changed.wait(guard, [&] { return stop || is_revoked; });
}

void Comm::stop_work() {
  std::lock_guard guard(lock);
  changed.notify_all();
}

void Comm::revoke() {
  is_revoking = false;
  is_revoked = true;
  pending.clear();
  state = SUCCESS;
  stop_work();
}

bool Comm::is_idle() {
  std::lock_guard guard(lock);
  return launched == finished;
}

void Comm::wait_idle() {
  std::unique_lock guard(lock);
  changed.wait(guard, [&] { return launched == finished; });
}

} // namespace fake_nccl
