// What kernels share: sums over warps and blocks, dynamic shared memory, barriers of the whole launch.
#pragma once

#include <cuda_runtime.h>

namespace ctm::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;

#ifdef CTM_EMULATION
inline float* shared_memory() { return reinterpret_cast<float*>(ctm::emulation::shared()); }
#else
__device__ __forceinline__ float* shared_memory() {
  extern __shared__ float4 arena[];  // aligned for vectors of four
  return reinterpret_cast<float*>(arena);
}
#endif

__device__ __forceinline__ int lane() { return threadIdx.x % kWarp; }
__device__ __forceinline__ int warp() { return threadIdx.x / kWarp; }

// The sum, or the maximum, in every lane.
__device__ __forceinline__ float warp_sum(float x) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) x += __shfl_xor_sync(kAllLanes, x, mask);
  return x;
}

__device__ __forceinline__ float warp_max(float x) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, mask));
  return x;
}

// Of all threads of a block, in every thread; `room` holds one float a warp. Ends with a barrier.
template <int THREADS>
__device__ float block_sum(float x, float* room) {
  x = warp_sum(x);
  if (lane() == 0) room[warp()] = x;
  __syncthreads();
  x = warp_sum(lane() < THREADS / kWarp ? room[lane()] : 0.0f);
  __syncthreads();
  return x;
}

template <int THREADS>
__device__ float block_max(float x, float* room) {
  x = warp_max(x);
  if (lane() == 0) room[warp()] = x;
  __syncthreads();
  x = warp_max(room[lane() % (THREADS / kWarp)]);
  __syncthreads();
  return x;
}

// The quick division is off by 2 units in the last place at most; it gives 0 for a divisor above 2^126, as it
// should here.
__device__ __forceinline__ float sigmoid(float x) { return __fdividef(1.0f, 1.0f + expf(-x)); }

// A barrier of all blocks of a launch whose blocks run at once: what any thread wrote before it, every thread
// reads after it with __ldcg (not through the first-level cache, which other multiprocessors do not update).
class LaunchBarrier {
 public:
  // counter: zero before the launch.
  __device__ LaunchBarrier(unsigned* counter, bool cluster) : counter_(counter), cluster_(cluster) {}

  __device__ void wait() {
#ifdef CTM_EMULATION
    (void)cluster_, (void)counter_;
    ctm::emulation::grid_barrier();
#else
    if (cluster_) return wait_cluster();
    __syncthreads();  // with the release behind it: what the whole block wrote
    if (threadIdx.x == 0) {
      passed_ += gridDim.x;
      arrive();
      while (static_cast<int>(arrived() - passed_) < 0) {
      }
    }
    __syncthreads();
#endif
  }

 private:
#ifndef CTM_EMULATION
  __device__ void arrive() const {
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter_) : "memory");
  }
  __device__ unsigned arrived() const {
    unsigned found;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(found) : "l"(counter_) : "memory");
    return found;
  }
  __device__ void wait_cluster() const {
#if __CUDA_ARCH__ >= 900
    __syncwarp();  // as .aligned demands
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
  }
  unsigned passed_ = 0;
#endif
  unsigned* counter_;
  bool cluster_;
};

}  // namespace ctm::cuda
