// Enough of the CUDA runtime to compile the kernels as C++ and run them on the CPU: what Triton's interpreter
// is for Triton. Found before the toolkit's header where the build puts this folder first.
//
// Every thread of a launch is a fiber of the calling thread; one runs until it waits at a barrier or a
// shuffle. schedule() changes the order in which they run: a result that depends on it lacks a barrier. A
// barrier that not all threads reach is an error, not a hang. What this cannot show: the barrier of a launch
// itself, memory ordering and first-level caches between multiprocessors, and speed.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)

using cudaError_t = int;
using cudaStream_t = void*;
enum { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidDevice = 101 };
enum { cudaFuncAttributeMaxDynamicSharedMemorySize = 8, cudaFuncAttributeNonPortableClusterSizeAllowed = 13 };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
};
enum { cudaLaunchAttributeCooperative = 2, cudaLaunchAttributeClusterDimension = 4 };

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
union cudaLaunchAttributeValue {
  int cooperative;
  struct {
    unsigned x, y, z;
  } clusterDim;
};
struct cudaLaunchAttribute {
  int id;
  cudaLaunchAttributeValue val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};

namespace ctm::emulation {

constexpr int kWarp = 32;

// Multiprocessors, bytes of shared memory of a block, major capability of the emulated device.
struct Limits {
  int multiprocessors = 3, shared = 100 << 10, major = 9;
};

Limits& limits();
// 0 runs threads in order, 1 in reverse, any other number in an order drawn from it.
void schedule(uint64_t order);

cudaError_t run(const cudaLaunchConfig_t& config, const std::function<void()>& thread);
char* shared();
void block_barrier();
void grid_barrier();
// Stores value in this lane's slot and returns the slots of its warp once all lanes have stored.
const double* exchange(double value);
void exchanged();
unsigned thread_index();
unsigned block_index();
unsigned blocks();

struct Index {
  struct {
    unsigned (*read)();
    operator unsigned() const { return read(); }
  } x;
};

}  // namespace ctm::emulation

constexpr ctm::emulation::Index threadIdx{{ctm::emulation::thread_index}};
constexpr ctm::emulation::Index blockIdx{{ctm::emulation::block_index}};
constexpr ctm::emulation::Index gridDim{{ctm::emulation::blocks}};

inline void __syncthreads() { ctm::emulation::block_barrier(); }

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  const double* lanes = ctm::emulation::exchange(value);
  const T found = static_cast<T>(lanes[(ctm::emulation::thread_index() % ctm::emulation::kWarp) ^ mask]);
  ctm::emulation::exchanged();
  return found;
}
inline void __syncwarp() {
  ctm::emulation::exchange(0);
  ctm::emulation::exchanged();
}
using std::min;
inline float __fdividef(float a, float b) { return a / b; }
template <class T>
T __ldcg(const T* address) {
  return *address;
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  return ctm::emulation::run(*config, [&] { kernel(arguments...); });
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, int, int bytes) {
  return bytes <= ctm::emulation::limits().shared ? cudaSuccess : cudaErrorInvalidValue;
}
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, Kernel, const cudaLaunchConfig_t* config) {
  *clusters = config->gridDim.x <= static_cast<unsigned>(ctm::emulation::limits().multiprocessors);
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaMemsetAsync(void* address, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t status);
