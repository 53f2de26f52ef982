// The two kernels. Made into kernels.ptx by `generate`, never by a build.

#include "bodies.h"

// True, for all threads of the block, if the launch may write. The word is in
// host memory, so one thread reads it for all.
static __device__ __forceinline__ bool wsync_may_write(const WsyncLaunch &launch) {
  __shared__ wsync_u32 is_aborted;
  if (threadIdx.x == 0) {
    is_aborted = *reinterpret_cast<volatile wsync_u32 *>(launch.abort);
    if (is_aborted == 0 && launch.mark != 0) {
      *reinterpret_cast<volatile wsync_u64 *>(launch.mark) = launch.sequence;
      // The mark is seen before anything that this block writes.
      __threadfence_system();
    }
  }
  __syncthreads();
  return is_aborted == 0;
}

extern "C" __global__ void __launch_bounds__(WSYNC_THREADS)
    wsync_move_kernel(const __grid_constant__ WsyncLaunch launch) {
  if (wsync_may_write(launch))
    wsync_move(launch, blockIdx.x, gridDim.x, threadIdx.x);
}

extern "C" __global__ void __launch_bounds__(WSYNC_THREADS)
    wsync_sum_kernel(const __grid_constant__ WsyncLaunch launch) {
  if (!wsync_may_write(launch))
    return;
  const WsyncJob *jobs = reinterpret_cast<const WsyncJob *>(launch.jobs);
  for (wsync_u64 tile = blockIdx.x; tile < launch.tiles; tile += gridDim.x) {
    const WsyncJob &job = jobs[wsync_job_of(jobs, launch.job_count, tile)];
    wsync_u64 sum = wsync_sum_of(job, tile, threadIdx.x);
    for (int lane = 16; lane > 0; lane /= 2)
      sum += __shfl_down_sync(0xffffffffu, sum, lane);
    if (threadIdx.x % 32 != 0)
      continue;
    if (job.sum != 0)
      atomicAdd(reinterpret_cast<wsync_u64 *>(job.sum), sum);
    if (job.weighted_sum != 0)
      atomicAdd(reinterpret_cast<wsync_u64 *>(job.weighted_sum), sum * job.weight);
  }
}
