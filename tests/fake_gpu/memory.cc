#include "memory.h"

#include <atomic>
#include <cstdio>
#include <cstring>
#include <fcntl.h>
#include <map>
#include <mutex>
#include <shared_mutex>
#include <sys/mman.h>
#include <unistd.h>

namespace fake {
namespace {

// Never destroyed: streams may still run when the process exits.
std::shared_mutex &lock = *new std::shared_mutex;
auto &table = *new std::map<uintptr_t, std::shared_ptr<const Allocation>>;
std::atomic<uint64_t> generation{1};
std::atomic<size_t> device_bytes{0};

constexpr size_t page = 4096;

/// The device whose memory it is; -1 for memory that all of them reach.
int owner(const Allocation &a) {
  bool is_its = a.kind == Kind::device || a.kind == Kind::vmm || a.kind == Kind::ipc;
  return is_its ? a.device : -1;
}

size_t round_up(size_t bytes) { return (bytes + page - 1) / page * page; }

void insert(Allocation a) {
  std::unique_lock guard(lock);
  table[a.base] = std::make_shared<const Allocation>(a);
  generation++;
}

void *map_twice(int fd, size_t bytes, Kind kind, int device) {
  size_t length = round_up(bytes);
  void *base = mmap(nullptr, length, PROT_NONE, MAP_SHARED, fd, 0);
  void *shadow = mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (base == MAP_FAILED || shadow == MAP_FAILED)
    return nullptr;
  insert({reinterpret_cast<uintptr_t>(base), bytes, kind, device,
          reinterpret_cast<uintptr_t>(shadow), fd});
  return base;
}

} // namespace

void *allocate_device(size_t bytes, Kind kind, int device) {
  int fd = memfd_create("fake_gpu", MFD_CLOEXEC);
  if (fd < 0 || ftruncate(fd, static_cast<off_t>(round_up(bytes))) != 0)
    return nullptr;
  void *base = map_twice(fd, bytes, kind, device);
  if (base == nullptr)
    return nullptr;
  device_bytes += bytes;
  uintptr_t shadow = translate(reinterpret_cast<uintptr_t>(base), bytes);
  memset(reinterpret_cast<void *>(shadow), 0xcb, bytes);
  return base;
}

void *allocate_host(size_t bytes, Kind kind, int device) {
  void *base = mmap(nullptr, round_up(bytes), PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED)
    return nullptr;
  uintptr_t at = reinterpret_cast<uintptr_t>(base);
  insert({at, bytes, kind, device, at, -1});
  return base;
}

bool register_host(void *pointer, size_t bytes) {
  uintptr_t at = reinterpret_cast<uintptr_t>(pointer);
  {
    std::shared_lock guard(lock);
    auto next = table.lower_bound(at + bytes);
    if (next != table.begin()) {
      const Allocation &before = *std::prev(next)->second;
      if (before.base + before.bytes > at)
        return false;
    }
  }
  insert({at, bytes, Kind::registered, 0, at, -1});
  return true;
}

bool unregister_host(void *pointer) {
  std::unique_lock guard(lock);
  auto it = table.find(reinterpret_cast<uintptr_t>(pointer));
  if (it == table.end() || it->second->kind != Kind::registered)
    return false;
  table.erase(it);
  generation++;
  return true;
}

void *open_ipc(int pid, int fd, size_t bytes, int device) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/fd/%d", pid, fd);
  int own = open(path, O_RDWR | O_CLOEXEC);
  return own < 0 ? nullptr : map_twice(own, bytes, Kind::ipc, device);
}

bool release(void *pointer, bool (*is_kind)(Kind)) {
  std::shared_ptr<const Allocation> gone;
  {
    std::unique_lock guard(lock);
    auto it = table.find(reinterpret_cast<uintptr_t>(pointer));
    if (it == table.end() || !is_kind(it->second->kind))
      return false;
    gone = it->second;
    table.erase(it);
    generation++;
  }
  size_t length = round_up(gone->bytes);
  munmap(reinterpret_cast<void *>(gone->base), length);
  if (gone->shadow != gone->base)
    munmap(reinterpret_cast<void *>(gone->shadow), length);
  if (gone->fd >= 0)
    close(gone->fd);
  if (gone->kind == Kind::device || gone->kind == Kind::vmm)
    device_bytes -= gone->bytes;
  return true;
}

std::shared_ptr<const Allocation> find(uintptr_t pointer) {
  std::shared_lock guard(lock);
  auto it = table.upper_bound(pointer);
  if (it == table.begin())
    return nullptr;
  auto &a = std::prev(it)->second;
  return pointer < a->base + a->bytes ? a : nullptr;
}

uintptr_t translate(uintptr_t pointer, size_t bytes, int *device) {
  // Kernels touch the same few ranges again and again.
  struct Cached {
    uint64_t generation;
    Allocation range;
  };
  thread_local Cached cache[4];
  thread_local unsigned turn;
  uint64_t now = generation.load(std::memory_order_acquire);
  auto inside = [&](const Allocation &a) {
    return pointer >= a.base && bytes <= a.bytes && pointer - a.base <= a.bytes - bytes;
  };
  for (auto &c : cache)
    if (c.generation == now && inside(c.range)) {
      if (device != nullptr)
        *device = owner(c.range);
      return c.range.shadow + (pointer - c.range.base);
    }
  auto found = find(pointer);
  if (!found || !inside(*found))
    return 0;
  cache[turn++ % 4] = {now, *found};
  if (device != nullptr)
    *device = owner(*found);
  return found->shadow + (pointer - found->base);
}

size_t allocated() { return device_bytes; }

} // namespace fake
