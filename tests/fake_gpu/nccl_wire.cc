#include "nccl_wire.h"

#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <poll.h>
#include <random>
#include <sys/socket.h>
#include <sys/un.h>
#include <thread>
#include <unistd.h>

namespace fake_nccl {
namespace {

/// How often a wait looks whether it shall stop.
constexpr int LOOK_MS = 10;

socklen_t fill(sockaddr_un &address, const std::string &name) {
  address = {};
  address.sun_family = AF_UNIX;
  memcpy(address.sun_path + 1, name.data(), name.size());
  return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
}

/// Waits for the descriptor; false if `stop` was set.
bool await(int fd, short events, const std::atomic<bool> &stop) {
  while (!stop) {
    pollfd one = {fd, events, 0};
    if (poll(&one, 1, LOOK_MS) > 0)
      return true;
  }
  return false;
}

} // namespace

Socket &Socket::operator=(Socket &&other) noexcept {
  std::swap(fd, other.fd);
  return *this;
}

Socket::~Socket() {
  if (fd >= 0)
    close(fd);
}

void Socket::shut() {
  if (fd >= 0)
    shutdown(fd, SHUT_RDWR);
}

std::string fresh_name() {
  std::random_device random;
  char name[48];
  snprintf(name, sizeof name, "fake-nccl-%d-%08x%08x", getpid(), random(), random());
  return name;
}

Socket listen_at(const std::string &name) {
  Socket socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address;
  socklen_t size = fill(address, name);
  if (bind(socket.fd, reinterpret_cast<sockaddr *>(&address), size) != 0 ||
      listen(socket.fd, 1024) != 0)
    return Socket();
  return socket;
}

Socket connect_to(const std::string &name, const std::atomic<bool> &stop) {
  sockaddr_un address;
  socklen_t size = fill(address, name);
  while (!stop) {
    Socket socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (connect(socket.fd, reinterpret_cast<sockaddr *>(&address), size) == 0)
      return socket;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return Socket();
}

Socket accept_from(const Socket &listener, const std::atomic<bool> &stop) {
  if (!await(listener.fd, POLLIN, stop))
    return Socket();
  return Socket(accept4(listener.fd, nullptr, nullptr, SOCK_CLOEXEC));
}

bool send_all(int fd, const void *data, size_t bytes, const std::atomic<bool> &stop) {
  auto at = static_cast<const char *>(data);
  while (bytes > 0) {
    ssize_t n = send(fd, at, bytes, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
      if (!await(fd, POLLOUT, stop))
        return false;
      continue;
    }
    if (n <= 0)
      return false;
    at += n;
    bytes -= static_cast<size_t>(n);
  }
  return true;
}

bool receive_all(int fd, void *data, size_t bytes, const std::atomic<bool> &stop) {
  auto at = static_cast<char *>(data);
  while (bytes > 0) {
    if (!await(fd, POLLIN, stop))
      return false;
    ssize_t n = recv(fd, at, bytes, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
      continue;
    if (n <= 0)
      return false;
    at += n;
    bytes -= static_cast<size_t>(n);
  }
  return true;
}

} // namespace fake_nccl
