// A stand-in for libcudart.so and the few calls of libcuda.so that we use, for
// machines without a GPU. It behaves like the real one where that hurts:
//
//   - streams are asynchronous; memory is full of 0xcb until a copy has run
//   - the host faults when it touches a device pointer
//   - kernels run the real kernel bodies, and fault on memory that is not theirs
//   - IPC crosses processes, and refuses VMM memory and one's own handles
//   - a capture is broken by calls that would wait, from any thread
//
// Environment, read at the first call:
//   FAKE_GPU_DEVICES     devices there are (24: more than any test has ranks)
//   FAKE_GPU_NO_DRIVER   1: every call fails as on a machine without a driver
//   FAKE_GPU_NO_PEER     1: devices cannot reach each other
//   FAKE_GPU_MIG         1: two devices are parts of one GPU
//   FAKE_GPU_MEMORY      bytes of memory of all devices together (4 GiB)
//   FAKE_GPU_RUNTIME     runtime version (13000), FAKE_GPU_DRIVER: driver version
//   FAKE_GPU_JITTER_US   how long work is held back at most (30)
//   FAKE_GPU_FAIL        faults: cudaMalloc:3=2,cudaMemcpyAsync:1=700; the third
//                        cudaMalloc returns 2, and so on
// Built with -DFAKE_GPU_OLD it lacks what CUDA 12.0 lacks.

#include "fake_gpu.h"
#include "memory.h"
#include "stream.h"

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <thread>
#include <unistd.h>
#include <vector>

namespace fake {
template <typename T> static T *device_memory(uint64_t address);
}

#define WSYNC_AT(type, address) fake::device_memory<type>(address)
#include "bodies.h"

namespace fake {
namespace {

std::mutex &lock = *new std::mutex;
auto &calls = *new std::map<std::string, uint64_t>;
auto &failures = *new std::map<std::string, std::map<uint64_t, int>>;
auto &streams = *new std::map<void *, std::shared_ptr<Stream>>;
auto &events = *new std::set<Event *>;
auto &peers = *new std::set<std::pair<int, int>>;
auto &kernels = *new std::map<std::string, void *>;
std::atomic<int> sticky{0};
std::atomic<int> captures{0};
std::atomic<int> broken_captures{0};
thread_local int current = 0;
thread_local int last_error = 0;
thread_local int capture_mode = 0;
/// The device whose stream this thread is, while it works.
thread_local int working_on = -1;

int number(const char *name, long otherwise) {
  const char *text = getenv(name);
  return static_cast<int>(text == nullptr ? otherwise : atol(text));
}

int device_count() {
  static const int count = number("FAKE_GPU_DEVICES", 24);
  return count;
}

size_t memory_bytes() {
  const char *text = getenv("FAKE_GPU_MEMORY");
  static const size_t bytes = text == nullptr ? size_t{4} << 30 : strtoull(text, nullptr, 10);
  return bytes;
}

void read_failures() {
  const char *text = getenv("FAKE_GPU_FAIL");
  if (text == nullptr)
    return;
  std::string all = std::string(text) + ",";
  for (size_t from = 0, to; (to = all.find(',', from)) != std::string::npos; from = to + 1) {
    char name[64];
    unsigned long long nth;
    int error;
    if (sscanf(all.substr(from, to - from).c_str(), "%63[^:]:%llu=%d", name, &nth, &error) == 3)
      failures[name][nth] = error;
  }
}

/// Counts the call; what it has to fail with, if anything.
int enter(const char *name) {
  static const bool no_driver = number("FAKE_GPU_NO_DRIVER", 0) != 0;
  static std::once_flag once;
  std::call_once(once, read_failures);
  std::lock_guard guard(lock);
  uint64_t nth = ++calls[name];
  if (no_driver)
    return last_error = 35;
  if (device_count() == 0)
    return last_error = 100;
  auto &mine = failures[name];
  if (auto it = mine.find(nth); it != mine.end())
    return last_error = it->second;
  return last_error = sticky;
}

int fail(int error) { return last_error = error; }

/// A call that may wait for the device: it breaks captures of other threads.
int forbid_in_capture() {
  if (captures == 0 || capture_mode == 2)
    return 0;
  broken_captures++;
  return fail(900);
}

std::shared_ptr<Stream> stream_of(void *handle) {
  std::lock_guard guard(lock);
  // One default stream for each device.
  void *key = handle;
  if (reinterpret_cast<uintptr_t>(handle) <= 2)
    key = reinterpret_cast<void *>(static_cast<uintptr_t>(16 + current));
  auto it = streams.find(key);
  if (it != streams.end())
    return it->second;
  if (key == handle)
    return nullptr;
  return streams[key] = std::make_shared<Stream>(current, true);
}

/// Puts work on a stream; 0, or why not.
int push(void *handle, std::function<void()> work) {
  auto stream = stream_of(handle);
  if (!stream)
    return fail(400);
  if (stream->is_capturing) {
    broken_captures++;
    return fail(900);
  }
  int device = stream->device;
  stream->push([device, work = std::move(work)] {
    working_on = device;
    if (sticky == 0)
      work();
    working_on = -1;
  });
  return 0;
}

void fault(int error) {
  int none = 0;
  sticky.compare_exchange_strong(none, error);
}

/// True if a kernel of `device` may touch memory of `owner`.
bool reaches(int device, int owner) {
  if (owner < 0 || device < 0 || owner == device)
    return true;
  std::lock_guard guard(lock);
  return peers.count({device, owner}) > 0;
}

/// Rows of bytes, somewhere.
struct Rows {
  uintptr_t at;
  size_t pitch, slice;
};

void copy_rows(Rows to, Rows from, size_t bytes, size_t rows, size_t slices) {
  for (size_t z = 0; z < slices; z++)
    for (size_t y = 0; y < rows; y++)
      memmove(reinterpret_cast<void *>(to.at + z * to.slice + y * to.pitch),
              reinterpret_cast<void *>(from.at + z * from.slice + y * from.pitch), bytes);
}

size_t extent(const Rows &r, size_t bytes, size_t rows, size_t slices) {
  return (slices - 1) * r.slice + (rows - 1) * r.pitch + bytes;
}

/// A copy as the runtime does it: pageable sources are read at once, pageable
/// targets are waited for.
int copy(Rows to, Rows from, size_t bytes, size_t rows, size_t slices, void *stream) {
  if (bytes == 0 || rows == 0 || slices == 0)
    return 0;
  bool is_from_known = find(from.at) != nullptr, is_to_known = find(to.at) != nullptr;
  size_t from_extent = extent(from, bytes, rows, slices), to_extent = extent(to, bytes, rows, slices);
  if (is_from_known && translate(from.at, from_extent) == 0)
    return fail(1);
  if (is_to_known && translate(to.at, to_extent) == 0)
    return fail(1);
  std::shared_ptr<std::vector<char>> held;
  if (!is_from_known) {
    auto start = reinterpret_cast<const char *>(from.at);
    held = std::make_shared<std::vector<char>>(start, start + from_extent);
  }
  int status = push(stream, [=] {
    Rows a = from, b = to;
    a.at = held ? reinterpret_cast<uintptr_t>(held->data()) : translate(from.at, from_extent);
    b.at = is_to_known ? translate(to.at, to_extent) : to.at;
    if (a.at == 0 || b.at == 0)
      return fault(700);
    copy_rows(b, a, bytes, rows, slices);
  });
  if (status == 0 && !is_to_known)
    stream_of(stream)->wait_idle();
  return status;
}

struct IpcHandle {
  uint64_t magic;
  int pid, fd, device, reserved;
  uint64_t bytes;
};
constexpr uint64_t ipc_magic = 0x66616b6547505530;

struct KernelEntry {
  std::string name;
};

/// Runs a kernel of ours: every block, every thread, one after the other.
void run_kernel(const std::string &name, const WsyncLaunch &launch, unsigned blocks) {
  auto abort = device_memory<uint32_t>(launch.abort);
  if (__atomic_load_n(abort, __ATOMIC_ACQUIRE) != 0)
    return;
  if (launch.mark != 0)
    __atomic_store_n(device_memory<uint64_t>(launch.mark), launch.sequence, __ATOMIC_RELEASE);
  if (name == "wsync_move_kernel") {
    for (unsigned block = 0; block < blocks; block++)
      for (unsigned thread = 0; thread < WSYNC_THREADS; thread++)
        wsync_move(launch, block, blocks, thread);
    return;
  }
  auto jobs = device_memory<const WsyncJob>(launch.jobs);
  for (uint64_t tile = 0; tile < launch.tiles; tile++) {
    const WsyncJob &job = jobs[wsync_job_of(jobs, launch.job_count, tile)];
    uint64_t sum = 0;
    for (unsigned thread = 0; thread < WSYNC_THREADS; thread++)
      sum += wsync_sum_of(job, tile, thread);
    if (job.sum != 0)
      *device_memory<uint64_t>(job.sum) += sum;
    if (job.weighted_sum != 0)
      *device_memory<uint64_t>(job.weighted_sum) += sum * job.weight;
  }
}

} // namespace

/// What a kernel touches: it faults where a GPU would.
template <typename T> static T *device_memory(uint64_t address) {
  alignas(16) static thread_local char nowhere[sizeof(T) < 64 ? 64 : sizeof(T)];
  if (address % alignof(T) != 0) {
    fault(716);
    return reinterpret_cast<T *>(nowhere);
  }
  int owner = -1;
  uintptr_t at = translate(address, sizeof(T), &owner);
  if (at == 0 || !reaches(working_on, owner)) {
    fault(700);
    return reinterpret_cast<T *>(nowhere);
  }
  return reinterpret_cast<T *>(at);
}

} // namespace fake

using namespace fake;

#define CALL(name)                                                                                 \
  if (int error = enter(name))                                                                     \
  return error
#define API extern "C" FAKE_GPU_EXPORT

// Shared with the stand-in libnccl.

API int fake_gpu_enqueue(void *stream, void (*run)(void *), void *argument) {
  return push(stream, [=] { run(argument); });
}
API void *fake_gpu_host(const void *pointer, size_t bytes) {
  return reinterpret_cast<void *>(translate(reinterpret_cast<uintptr_t>(pointer), bytes));
}
API int fake_gpu_current_device(void) { return current; }
API int fake_gpu_stream_device(void *stream) {
  auto found = stream_of(stream);
  return found ? found->device : -1;
}
API int fake_gpu_pointer_device(const void *pointer) {
  auto a = find(reinterpret_cast<uintptr_t>(pointer));
  bool is_host = !a || a->kind == Kind::pinned || a->kind == Kind::registered;
  return is_host ? -1 : a->device;
}
API int fake_gpu_pointer_is_vmm(const void *pointer) {
  auto a = find(reinterpret_cast<uintptr_t>(pointer));
  return a && a->kind == Kind::vmm;
}
API int fake_gpu_is_capturing(void *stream) {
  auto found = stream_of(stream);
  return found && found->is_capturing;
}
API void fake_gpu_fault(int error) { fault(error); }

// For tests alone.

/// How often a function was called.
API uint64_t fake_gpu_calls(const char *name) {
  std::lock_guard guard(lock);
  return calls[name];
}
/// The `nth` call from now on, counted from 1, returns `error`.
API void fake_gpu_fail(const char *name, uint64_t nth, int error) {
  std::lock_guard guard(lock);
  failures[name][calls[name] + nth] = error;
}
/// Forgets a fault of the device.
API void fake_gpu_heal(void) { sticky = 0; }
/// Captures that a call has broken.
API int fake_gpu_broken_captures(void) { return broken_captures; }
/// Device memory as torch's expandable segments make it.
API void *fake_gpu_malloc_vmm(size_t bytes) { return allocate_device(bytes, Kind::vmm, current); }
/// Bytes of device memory in use.
API size_t fake_gpu_allocated(void) { return allocated(); }

// Device.

API int cudaGetDeviceCount(int *count) {
  CALL("cudaGetDeviceCount");
  *count = device_count();
  return 0;
}
API int cudaSetDevice(int device) {
  CALL("cudaSetDevice");
  if (device < 0 || device >= device_count())
    return fail(101);
  current = device;
  return 0;
}
API int cudaGetDevice(int *device) {
  CALL("cudaGetDevice");
  *device = current;
  return 0;
}
API int cudaDeviceGetAttribute(int *value, int attribute, int device) {
  CALL("cudaDeviceGetAttribute");
  if (device < 0 || device >= device_count())
    return fail(101);
  *value = attribute == 16 ? 2 : attribute == 75 ? 9 : attribute == 76 ? 0 : 1;
  return 0;
}
API int cudaDeviceGetPCIBusId(char *id, int length, int device) {
  CALL("cudaDeviceGetPCIBusId");
  if (device < 0 || device >= device_count())
    return fail(101);
  static const int parts = number("FAKE_GPU_MIG", 0) != 0 ? 2 : 1;
  snprintf(id, static_cast<size_t>(length), "0000:%02x:00.0", device / parts + 1);
  return 0;
}
API int cuDeviceGet(int *out, int device) {
  CALL("cuDeviceGet");
  if (device < 0 || device >= device_count())
    return fail(101);
  *out = device;
  return 0;
}
/// Every device is half of a GPU with FAKE_GPU_MIG=1: two have one address.
API int cuDeviceGetUuid_v2(unsigned char *out, int device) {
  CALL("cuDeviceGetUuid_v2");
  memset(out, 0x47, 16);
  out[15] = static_cast<unsigned char>(device);
  return 0;
}
API int cudaDeviceCanAccessPeer(int *can, int device, int peer) {
  CALL("cudaDeviceCanAccessPeer");
  static const bool no_peer = number("FAKE_GPU_NO_PEER", 0) != 0;
  *can = device != peer && !no_peer;
  return 0;
}
API int cudaDeviceEnablePeerAccess(int peer, unsigned flags) {
  CALL("cudaDeviceEnablePeerAccess");
  if (flags != 0 || peer == current || peer < 0 || peer >= device_count())
    return fail(101);
  std::lock_guard guard(lock);
  return peers.insert({current, peer}).second ? 0 : fail(704);
}
API int cudaDriverGetVersion(int *version) {
  static const bool no_driver = number("FAKE_GPU_NO_DRIVER", 0) != 0;
  *version = no_driver ? 0 : number("FAKE_GPU_DRIVER", 13000);
  return 0;
}
API int cudaRuntimeGetVersion(int *version) {
  *version = number("FAKE_GPU_RUNTIME", 13000);
  return 0;
}
API const char *cudaGetErrorName(int error) {
  switch (error) {
  case 0: return "cudaSuccess";
  case 1: return "cudaErrorInvalidValue";
  case 2: return "cudaErrorMemoryAllocation";
  case 35: return "cudaErrorInsufficientDriver";
  case 100: return "cudaErrorNoDevice";
  case 101: return "cudaErrorInvalidDevice";
  case 201: return "cudaErrorDeviceUninitialized";
  case 400: return "cudaErrorInvalidResourceHandle";
  case 600: return "cudaErrorNotReady";
  case 700: return "cudaErrorIllegalAddress";
  case 716: return "cudaErrorMisalignedAddress";
  case 801: return "cudaErrorNotSupported";
  case 900: return "cudaErrorStreamCaptureUnsupported";
  default: return "cudaErrorUnknown";
  }
}
API const char *cudaGetErrorString(int error) {
  switch (error) {
  case 0: return "no error";
  case 2: return "out of memory";
  case 35: return "CUDA driver version is insufficient for CUDA runtime version";
  case 100: return "no CUDA-capable device is detected";
  case 700: return "an illegal memory access was encountered";
  default: return "as the stand-in was told";
  }
}
API int cudaGetLastError(void) {
  int error = last_error;
  last_error = sticky;
  return error;
}

// Memory.

API int cudaMalloc(void **pointer, size_t bytes) {
  CALL("cudaMalloc");
  if (int error = forbid_in_capture())
    return error;
  *pointer = nullptr;
  if (bytes == 0)
    return 0;
  if (bytes > memory_bytes() - allocated())
    return fail(2);
  *pointer = allocate_device(bytes, Kind::device, current);
  return *pointer == nullptr ? fail(2) : 0;
}
API int cudaFree(void *pointer) {
  CALL("cudaFree");
  if (int error = forbid_in_capture())
    return error;
  auto is_device = [](Kind k) { return k == Kind::device || k == Kind::vmm || k == Kind::managed; };
  return pointer == nullptr || release(pointer, is_device) ? 0 : fail(1);
}
API int cudaMallocManaged(void **pointer, size_t bytes, unsigned) {
  CALL("cudaMallocManaged");
  *pointer = allocate_host(bytes, Kind::managed, current);
  return *pointer == nullptr ? fail(2) : 0;
}
API int cudaHostAlloc(void **pointer, size_t bytes, unsigned) {
  CALL("cudaHostAlloc");
  if (int error = forbid_in_capture())
    return error;
  *pointer = allocate_host(bytes, Kind::pinned, current);
  return *pointer == nullptr ? fail(2) : 0;
}
API int cudaFreeHost(void *pointer) {
  CALL("cudaFreeHost");
  return pointer == nullptr || release(pointer, [](Kind k) { return k == Kind::pinned; }) ? 0
                                                                                         : fail(1);
}
API int cudaHostRegister(void *pointer, size_t bytes, unsigned) {
  CALL("cudaHostRegister");
  return register_host(pointer, bytes) ? 0 : fail(712);
}
API int cudaHostUnregister(void *pointer) {
  CALL("cudaHostUnregister");
  return unregister_host(pointer) ? 0 : fail(713);
}
API int cudaMemGetInfo(size_t *available, size_t *total) {
  CALL("cudaMemGetInfo");
  *total = memory_bytes();
  *available = *total - allocated();
  return 0;
}
/// As CUDA 13 lays it out, which is longer than CUDA 12.
struct PointerAttributes {
  int kind, device;
  const void *device_pointer, *host_pointer;
  long reserved[8];
};
API int cudaPointerGetAttributes(PointerAttributes *out, const void *pointer) {
  CALL("cudaPointerGetAttributes");
  auto a = find(reinterpret_cast<uintptr_t>(pointer));
  memset(out, 0, sizeof *out);
  if (!a) {
    out->device = -2;
    return 0;
  }
  bool is_host = a->kind == Kind::pinned || a->kind == Kind::registered;
  out->kind = is_host ? 1 : a->kind == Kind::managed ? 3 : 2;
  out->device = a->device;
  out->device_pointer = pointer;
  out->host_pointer = is_host || a->kind == Kind::managed ? pointer : nullptr;
  return 0;
}
API int cuPointerGetAttribute(void *out, int attribute, uint64_t pointer) {
  CALL("cuPointerGetAttribute");
  auto a = find(pointer);
  if (!a)
    return fail(1);
  switch (attribute) {
  case 9: *static_cast<int *>(out) = a->kind == Kind::device; return 0;
  case 11: *static_cast<uint64_t *>(out) = a->base; return 0;
  case 12: *static_cast<size_t *>(out) = a->bytes; return 0;
  default: return fail(1);
  }
}

// Copies.

API int cudaMemcpyAsync(void *to, const void *from, size_t bytes, int, void *stream) {
  CALL("cudaMemcpyAsync");
  return copy({reinterpret_cast<uintptr_t>(to), bytes, bytes},
              {reinterpret_cast<uintptr_t>(from), bytes, bytes}, bytes, 1, 1, stream);
}
API int cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch,
                          size_t bytes, size_t rows, int, void *stream) {
  CALL("cudaMemcpy2DAsync");
  if (to_pitch < bytes || from_pitch < bytes)
    return fail(12);
  return copy({reinterpret_cast<uintptr_t>(to), to_pitch, 0},
              {reinterpret_cast<uintptr_t>(from), from_pitch, 0}, bytes, rows, 1, stream);
}
struct Pitched {
  void *pointer;
  size_t pitch, xsize, ysize;
};
struct Memcpy3d {
  void *from_array;
  size_t from_pos[3];
  Pitched from;
  void *to_array;
  size_t to_pos[3];
  Pitched to;
  size_t extent[3];
  int kind;
};
static_assert(sizeof(Memcpy3d) == 160);
API int cudaMemcpy3DAsync(const Memcpy3d *p, void *stream) {
  CALL("cudaMemcpy3DAsync");
  auto rows = [](const Pitched &side, const size_t *pos) {
    size_t slice = side.pitch * side.ysize;
    return Rows{reinterpret_cast<uintptr_t>(side.pointer) + pos[0] + pos[1] * side.pitch +
                    pos[2] * slice,
                side.pitch, slice};
  };
  bool is_odd = p->from_array != nullptr || p->to_array != nullptr;
  if (is_odd || p->from.pitch < p->extent[0] || p->to.pitch < p->extent[0])
    return fail(12);
  return copy(rows(p->to, p->to_pos), rows(p->from, p->from_pos), p->extent[0], p->extent[1],
              p->extent[2], stream);
}
API int cudaMemset2DAsync(void *to, size_t pitch, int value, size_t bytes, size_t rows,
                          void *stream) {
  CALL("cudaMemset2DAsync");
  if (bytes == 0 || rows == 0)
    return 0;
  uintptr_t at = reinterpret_cast<uintptr_t>(to);
  size_t all = (rows - 1) * pitch + bytes;
  if (pitch < bytes || translate(at, all) == 0)
    return fail(1);
  return push(stream, [=] {
    for (size_t row = 0; row < rows; row++)
      memset(reinterpret_cast<void *>(translate(at, all) + row * pitch), value, bytes);
  });
}
API int cudaMemsetAsync(void *to, int value, size_t bytes, void *stream) {
  CALL("cudaMemsetAsync");
  return cudaMemset2DAsync(to, bytes, value, bytes, 1, stream);
}

// Streams and events.

API int cudaStreamCreateWithFlags(void **stream, unsigned) {
  CALL("cudaStreamCreateWithFlags");
  auto made = std::make_shared<Stream>(current, false);
  std::lock_guard guard(lock);
  streams[made.get()] = made;
  *stream = made.get();
  return 0;
}
API int cudaStreamDestroy(void *stream) {
  CALL("cudaStreamDestroy");
  std::lock_guard guard(lock);
  auto it = streams.find(stream);
  if (it == streams.end())
    return fail(400);
  it->second->close();
  streams.erase(it);
  return 0;
}
API int cudaStreamSynchronize(void *stream) {
  CALL("cudaStreamSynchronize");
  if (int error = forbid_in_capture())
    return error;
  auto found = stream_of(stream);
  if (!found)
    return fail(400);
  found->wait_idle();
  return fail(sticky);
}
API int cudaDeviceSynchronize(void) {
  CALL("cudaDeviceSynchronize");
  std::vector<std::shared_ptr<Stream>> all;
  {
    std::lock_guard guard(lock);
    for (auto &s : streams)
      if (s.second->device == current)
        all.push_back(s.second);
  }
  for (auto &s : all)
    s->wait_idle();
  return fail(sticky);
}
API int cudaStreamQuery(void *stream) {
  CALL("cudaStreamQuery");
  if (int error = forbid_in_capture())
    return error;
  auto found = stream_of(stream);
  if (!found)
    return fail(400);
  return found->is_idle() ? fail(sticky) : 600;
}
API int cudaEventCreateWithFlags(void **event, unsigned) {
  CALL("cudaEventCreateWithFlags");
  auto made = new Event;
  std::lock_guard guard(lock);
  events.insert(made);
  *event = made;
  return 0;
}
static std::shared_ptr<EventState> event_of(void *event) {
  std::lock_guard guard(lock);
  auto it = events.find(static_cast<Event *>(event));
  return it == events.end() ? nullptr : (*it)->state;
}
API int cudaEventDestroy(void *event) {
  CALL("cudaEventDestroy");
  std::lock_guard guard(lock);
  auto found = static_cast<Event *>(event);
  if (events.erase(found) == 0)
    return fail(400);
  delete found;
  return 0;
}
API int cudaEventRecord(void *event, void *stream) {
  CALL("cudaEventRecord");
  auto state = event_of(event);
  if (!state)
    return fail(400);
  uint64_t mine;
  {
    std::lock_guard guard(state->lock);
    mine = ++state->recorded;
  }
  return push(stream, [=] {
    std::lock_guard guard(state->lock);
    state->reached = mine;
    auto now = std::chrono::steady_clock::now().time_since_epoch();
    state->seconds = std::chrono::duration<double>(now).count();
    state->changed.notify_all();
  });
}
API int cudaStreamWaitEvent(void *stream, void *event, unsigned) {
  CALL("cudaStreamWaitEvent");
  auto state = event_of(event);
  if (!state)
    return fail(400);
  uint64_t until;
  {
    std::lock_guard guard(state->lock);
    // An event that was never recorded holds nobody.
    until = state->recorded;
  }
  return push(stream, [=] {
    std::unique_lock guard(state->lock);
    state->changed.wait(guard, [&] { return state->reached >= until; });
  });
}
API int cudaEventQuery(void *event) {
  CALL("cudaEventQuery");
  if (int error = forbid_in_capture())
    return error;
  auto state = event_of(event);
  if (!state)
    return fail(400);
  std::lock_guard guard(state->lock);
  return state->reached >= state->recorded ? fail(sticky) : 600;
}
API int cudaEventSynchronize(void *event) {
  CALL("cudaEventSynchronize");
  if (int error = forbid_in_capture())
    return error;
  auto state = event_of(event);
  if (!state)
    return fail(400);
  std::unique_lock guard(state->lock);
  uint64_t until = state->recorded;
  while (state->reached < until && sticky == 0)
    state->changed.wait_for(guard, std::chrono::milliseconds(5));
  return fail(sticky);
}
API int cudaEventElapsedTime(float *ms, void *start, void *end) {
  CALL("cudaEventElapsedTime");
  auto a = event_of(start), b = event_of(end);
  if (!a || !b)
    return fail(400);
  *ms = static_cast<float>((b->seconds - a->seconds) * 1e3);
  return 0;
}
API int cudaStreamIsCapturing(void *stream, int *status) {
  CALL("cudaStreamIsCapturing");
  auto found = stream_of(stream);
  if (!found)
    return fail(400);
  *status = found->is_capturing ? 1 : 0;
  return 0;
}
API int cudaStreamBeginCapture(void *stream, int) {
  CALL("cudaStreamBeginCapture");
  auto found = stream_of(stream);
  if (!found || found->is_capturing)
    return fail(400);
  found->is_capturing = true;
  captures++;
  return 0;
}
API int cudaStreamEndCapture(void *stream, void **graph) {
  CALL("cudaStreamEndCapture");
  auto found = stream_of(stream);
  if (!found || !found->is_capturing)
    return fail(400);
  found->is_capturing = false;
  captures--;
  *graph = nullptr;
  return 0;
}
API int cudaThreadExchangeStreamCaptureMode(int *mode) {
  CALL("cudaThreadExchangeStreamCaptureMode");
  std::swap(capture_mode, *mode);
  return 0;
}
API int cudaLaunchHostFunc(void *stream, void (*run)(void *), void *argument) {
  CALL("cudaLaunchHostFunc");
  return push(stream, [=] { run(argument); });
}
API int cuStreamWriteValue64_v2(void *stream, uint64_t address, uint64_t value, unsigned) {
  CALL("cuStreamWriteValue64_v2");
  if (translate(address, 8) == 0 || address % 8 != 0)
    return fail(1);
  return push(stream, [=] {
    __atomic_store_n(device_memory<uint64_t>(address), value, __ATOMIC_RELEASE);
  });
}
API int cuStreamWaitValue64_v2(void *stream, uint64_t address, uint64_t value, unsigned flags) {
  CALL("cuStreamWaitValue64_v2");
  if (translate(address, 8) == 0 || address % 8 != 0 || flags != 0)
    return fail(1);
  return push(stream, [=] {
    auto word = device_memory<uint64_t>(address);
    while (static_cast<int64_t>(__atomic_load_n(word, __ATOMIC_ACQUIRE) - value) < 0)
      std::this_thread::sleep_for(std::chrono::microseconds(20));
  });
}

// IPC.

API int cudaIpcGetMemHandle(void *handle, void *pointer) {
  CALL("cudaIpcGetMemHandle");
  auto a = find(reinterpret_cast<uintptr_t>(pointer));
  // Of the whole allocation, wherever in it the pointer points.
  if (!a || a->kind != Kind::device)
    return fail(1);
  IpcHandle out{ipc_magic, getpid(), a->fd, a->device, 0, a->bytes};
  memset(handle, 0, 64);
  memcpy(handle, &out, sizeof out);
  return 0;
}
struct RawHandle {
  char bytes[64];
};
API int cudaIpcOpenMemHandle(void **pointer, RawHandle raw, unsigned flags) {
  CALL("cudaIpcOpenMemHandle");
  IpcHandle handle;
  memcpy(&handle, raw.bytes, sizeof handle);
  if (flags != 1 || handle.magic != ipc_magic)
    return fail(1);
  if (handle.pid == getpid())
    return fail(201);
  *pointer = open_ipc(handle.pid, handle.fd, handle.bytes, handle.device);
  return *pointer == nullptr ? fail(1) : 0;
}
API int cudaIpcCloseMemHandle(void *pointer) {
  CALL("cudaIpcCloseMemHandle");
  return release(pointer, [](Kind k) { return k == Kind::ipc; }) ? 0 : fail(1);
}

// Kernels.

static void *kernel_of(const char *code, const char *name) {
  // A driver takes PTX of its own version and older ones.
  std::string entry = std::string(".entry ") + name + "(";
  if (strstr(code, ".version 8.0\n") == nullptr || strstr(code, entry.c_str()) == nullptr)
    return nullptr;
  std::lock_guard guard(lock);
  void *&kernel = kernels[name];
  if (kernel == nullptr)
    kernel = new KernelEntry{name};
  return kernel;
}
static int launch(void *kernel, unsigned blocks, unsigned threads, void **arguments, void *stream) {
  if (kernel == nullptr || blocks == 0 || threads != WSYNC_THREADS)
    return fail(1);
  WsyncLaunch launch;
  memcpy(&launch, arguments[0], sizeof launch);
  std::string name = static_cast<KernelEntry *>(kernel)->name;
  return push(stream, [=] { run_kernel(name, launch, blocks); });
}
API int cuModuleLoadData(const void **module, const void *code) {
  CALL("cuModuleLoadData");
  *module = code;
  return 0;
}
API int cuModuleGetFunction(void **kernel, void *module, const char *name) {
  CALL("cuModuleGetFunction");
  *kernel = kernel_of(static_cast<const char *>(module), name);
  return *kernel == nullptr ? fail(500) : 0;
}
API int cuLaunchKernel(void *kernel, unsigned x, unsigned, unsigned, unsigned threads, unsigned,
                       unsigned, unsigned, void *stream, void **arguments, void **) {
  CALL("cuLaunchKernel");
  return launch(kernel, x, threads, arguments, stream);
}
struct Dim3 {
  unsigned x, y, z;
};
API int cudaLaunchKernel(void *kernel, Dim3 grid, Dim3 block, void **arguments, size_t,
                         void *stream) {
  CALL("cudaLaunchKernel");
  return launch(kernel, grid.x, block.x, arguments, stream);
}
#ifndef FAKE_GPU_OLD
API int cudaLibraryLoadData(const void **library, const void *code, int *, void **, unsigned, int *,
                            void **, unsigned) {
  CALL("cudaLibraryLoadData");
  *library = code;
  return 0;
}
API int cudaLibraryGetKernel(void **kernel, void *library, const char *name) {
  CALL("cudaLibraryGetKernel");
  *kernel = kernel_of(static_cast<const char *>(library), name);
  return *kernel == nullptr ? fail(500) : 0;
}
#endif
