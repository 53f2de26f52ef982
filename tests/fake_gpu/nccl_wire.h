// Sockets between the ranks of a stand-in communicator.

#pragma once

#include <atomic>
#include <cstddef>
#include <string>

namespace fake_nccl {

/// A file descriptor that closes itself.
class Socket {
public:
  Socket() = default;
  explicit Socket(int fd) : fd(fd) {}
  Socket(Socket &&other) noexcept : fd(other.fd) { other.fd = -1; }
  Socket &operator=(Socket &&other) noexcept;
  ~Socket();
  bool is_open() const { return fd >= 0; }
  /// Both ends see the end of the stream; the descriptor stays.
  void shut();

  int fd = -1;
};

/// Names are those of abstract Unix sockets: nothing is left behind.
std::string fresh_name();
Socket listen_at(const std::string &name);
/// Tries again until somebody listens; closed if `stop` was set meanwhile.
Socket connect_to(const std::string &name, const std::atomic<bool> &stop);
Socket accept_from(const Socket &listener, const std::atomic<bool> &stop);

/// All bytes, or false if the peer is gone or `stop` was set.
bool send_all(int fd, const void *data, size_t bytes, const std::atomic<bool> &stop);
bool receive_all(int fd, void *data, size_t bytes, const std::atomic<bool> &stop);

} // namespace fake_nccl
