// Memory of the stand-in: what a pointer is, and where the host may touch it.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace fake {

enum class Kind { device, vmm, managed, pinned, registered, ipc };

struct Allocation {
  uintptr_t base;
  size_t bytes;
  Kind kind;
  int device;
  /// Where the host may touch it; `base` itself for host memory.
  uintptr_t shadow;
  /// Of device memory.
  int fd;
};

/// Device memory: pages of a memfd that are mapped twice, once so that every
/// touch faults. Full of 0xcb. Returns NULL where there is no memory.
void *allocate_device(size_t bytes, Kind kind, int device);

/// Ordinary pages that devices may touch, too.
void *allocate_host(size_t bytes, Kind kind, int device);

/// The caller's own pages become device-accessible; false if some are already.
bool register_host(void *pointer, size_t bytes);
bool unregister_host(void *pointer);

/// Maps the memory behind another process's file descriptor.
void *open_ipc(int pid, int fd, size_t bytes, int device);

/// Gives memory back; false if `pointer` is not the start of memory of this
/// kind. `ipc` unmaps what open_ipc mapped.
bool release(void *pointer, bool (*is_kind)(Kind));

/// What `pointer` points into.
std::shared_ptr<const Allocation> find(uintptr_t pointer);

/// Where the host may touch `bytes` bytes at `pointer`; 0 if nowhere. Writes
/// whose device memory it is, -1 for memory that every device reaches.
uintptr_t translate(uintptr_t pointer, size_t bytes, int *device = nullptr);

/// Bytes of device memory that are allocated.
size_t allocated();

} // namespace fake
