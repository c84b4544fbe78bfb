// Kernels with one fault each, which the emulation must show: they test the tests.
#include "faults.h"

#include "../launch.h"
#include "../thread_block.h"

namespace ctm::emulation {
namespace {

using cuda::check;
using cuda::shared_memory;

constexpr unsigned kThreads = 64;

// Every thread hands its index to the next one; without the barrier it reads what is not yet there.
__global__ void unordered(float* out, bool barrier) {
  float* row = shared_memory();
  row[threadIdx.x] = static_cast<float>(threadIdx.x);
  if (barrier) __syncthreads();
  out[threadIdx.x] = row[(threadIdx.x + 1) % kThreads];
}

__global__ void outside() {
  if (threadIdx.x == 0) shared_memory()[kThreads + 8] = 1.0f;
}

__global__ void divergent() {
  if (threadIdx.x < kThreads / 2) __syncthreads();
}

cudaLaunchConfig_t configuration() {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(1), config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = kThreads * sizeof(float);
  return config;
}

}  // namespace

std::vector<float> run_unordered(bool barrier) {
  const cudaLaunchConfig_t config = configuration();
  std::vector<float> out(kThreads);
  check(cudaLaunchKernelEx(&config, unordered, out.data(), barrier), "unordered", "");
  return out;
}

void run_outside() {
  const cudaLaunchConfig_t config = configuration();
  check(cudaLaunchKernelEx(&config, outside), "outside", "");
}

void run_divergent() {
  const cudaLaunchConfig_t config = configuration();
  check(cudaLaunchKernelEx(&config, divergent), "divergent", "");
}

}  // namespace ctm::emulation
