// What the stand-in libraries of this folder share: asynchronous work on a
// stream, and the memory behind a device pointer.
//
//   libcudart.so.12 (fake)          libnccl.so.2 (fake)
//   streams, memory, events  ◄────  fake_gpu_enqueue, fake_gpu_host
//
// A fake stream is a thread with a queue. A fake device pointer faults when the
// host touches it; the same pages are mapped a second time, and only code that
// runs "on the device" may look there.

#ifndef WEIGHTSYNC_FAKE_GPU_H
#define WEIGHTSYNC_FAKE_GPU_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

#define FAKE_GPU_EXPORT __attribute__((visibility("default")))

/// Runs `run(argument)` on the thread of `stream` (a cudaStream_t; NULL is the
/// default stream), after everything that was put there before and before
/// everything that comes later. The function may block: later work of the
/// stream then waits, as behind a kernel that does not end. It must not call
/// CUDA. Returns a cudaError_t: 0, 400 for a stream that does not exist, 900
/// for one that is being captured.
FAKE_GPU_EXPORT int fake_gpu_enqueue(void *stream, void (*run)(void *), void *argument);

/// Where the host may touch the `bytes` bytes at `pointer`, which lie in device,
/// managed, pinned or registered memory of this process or in an opened IPC
/// range. NULL if they do not: a real device would fault.
FAKE_GPU_EXPORT void *fake_gpu_host(const void *pointer, size_t bytes);

/// The device that is current on the calling thread.
FAKE_GPU_EXPORT int fake_gpu_current_device(void);

/// The device that a stream belongs to; -1 if there is no such stream.
FAKE_GPU_EXPORT int fake_gpu_stream_device(void *stream);

/// The device that memory belongs to; -1 for host memory and unknown pointers.
FAKE_GPU_EXPORT int fake_gpu_pointer_device(const void *pointer);

/// 1 if the memory was made by the VMM calls, which cannot be exported by IPC.
FAKE_GPU_EXPORT int fake_gpu_pointer_is_vmm(const void *pointer);

/// 1 while the stream is being captured into a graph.
FAKE_GPU_EXPORT int fake_gpu_is_capturing(void *stream);

/// Marks the whole device as faulted with this cudaError_t: every later call
/// of the process returns it, as after an illegal access.
FAKE_GPU_EXPORT void fake_gpu_fault(int error);

#ifdef __cplusplus
}
#endif

#endif
