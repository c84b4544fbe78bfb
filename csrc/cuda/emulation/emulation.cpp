#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <deque>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

#include "cuda_runtime.h"

namespace ctm::emulation {
namespace {

constexpr size_t kStack = 128 << 10;
constexpr size_t kAlignment = 16;
constexpr size_t kGuard = 4096;      // bytes behind a block's shared memory, which nothing may write
constexpr char kUntouched = '\xff';  // floats of such bytes are NaN, as unwritten memory may be on a GPU

struct Barrier {
  size_t members = 0;
  std::vector<struct Fiber*> waiting;
};

struct Fiber {
  ucontext_t context;  // to start with: later switches by jumps, which cost no system call
  jmp_buf place;
  std::unique_ptr<char[]> stack;
  unsigned thread, block;
  bool started = false, finished = false;
};

struct Launch {
  const std::function<void()>* body;
  unsigned threads, blocks;
  std::vector<Fiber> fibers;
  std::vector<std::vector<char>> shared;  // one arena a block
  std::vector<Barrier> block_barriers, warp_barriers;
  std::vector<double> lanes;
  Barrier grid_barrier;
  std::deque<Fiber*> ready;
  jmp_buf scheduler;
};

uint64_t order = 0;
Launch* launch = nullptr;
Fiber* running = nullptr;

size_t warps(const Launch& l) { return (l.threads + kWarp - 1) / kWarp; }
size_t warp_of(const Fiber& f) { return f.block * warps(*launch) + f.thread / kWarp; }

void start() {
  (*launch->body)();
  running->finished = true;
  _longjmp(launch->scheduler, 1);
}

void resume(Fiber& fiber) {
  running = &fiber;
  if (_setjmp(launch->scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.place, 1);
  fiber.started = true;
  setcontext(&fiber.context);
}

void wait(Barrier& barrier) {
  barrier.waiting.push_back(running);
  if (barrier.waiting.size() == barrier.members) {
    launch->ready.insert(launch->ready.end(), barrier.waiting.begin(), barrier.waiting.end());
    barrier.waiting.clear();
  }
  if (_setjmp(running->place) == 0) _longjmp(launch->scheduler, 1);
}

std::vector<size_t> ordered(size_t count) {
  std::vector<size_t> places(count);
  std::iota(places.begin(), places.end(), 0);
  if (order == 1) std::reverse(places.begin(), places.end());
  if (order > 1) std::shuffle(places.begin(), places.end(), std::mt19937_64(order));
  return places;
}

void make_fibers(Launch& l) {
  l.fibers = std::vector<Fiber>(size_t{l.threads} * l.blocks);
  for (size_t i = 0; i < l.fibers.size(); ++i) {
    Fiber& f = l.fibers[i];
    f.thread = i % l.threads, f.block = i / l.threads;
    f.stack = std::make_unique_for_overwrite<char[]>(kStack);
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack.get();
    f.context.uc_stack.ss_size = kStack;
    makecontext(&f.context, start, 0);
  }
  for (const size_t i : ordered(l.fibers.size())) l.ready.push_back(&l.fibers[i]);
}

void make_barriers(Launch& l) {
  l.block_barriers.resize(l.blocks);
  for (Barrier& b : l.block_barriers) b.members = l.threads;
  l.warp_barriers.resize(l.blocks * warps(l));
  for (size_t i = 0; i < l.warp_barriers.size(); ++i)
    l.warp_barriers[i].members = std::min<size_t>(kWarp, l.threads - i % warps(l) * kWarp);
  l.grid_barrier.members = l.fibers.size();
  l.lanes.resize(l.warp_barriers.size() * kWarp);
}

}  // namespace

Limits& limits() {
  static Limits found;
  return found;
}

void schedule(uint64_t seed) { order = seed; }

cudaError_t run(const cudaLaunchConfig_t& config, const std::function<void()>& thread) {
  Launch l;
  l.body = &thread, l.threads = config.blockDim.x, l.blocks = config.gridDim.x;
  if (l.threads == 0 || l.threads > 1024 || l.blocks == 0) return cudaErrorInvalidValue;
  l.shared.assign(l.blocks, std::vector<char>(config.dynamicSmemBytes + kGuard, kUntouched));
  launch = &l;
  make_fibers(l);
  make_barriers(l);
  while (!l.ready.empty()) {
    Fiber& next = *l.ready.front();
    l.ready.pop_front();
    resume(next);
  }
  launch = nullptr;
  if (!std::all_of(l.fibers.begin(), l.fibers.end(), [](const Fiber& f) { return f.finished; }))
    throw std::runtime_error("emulation: not all threads reached a barrier");
  for (const auto& arena : l.shared) {
    if (std::any_of(arena.begin() + kAlignment + config.dynamicSmemBytes, arena.end(),
                    [](char c) { return c != kUntouched; }))
      throw std::runtime_error("emulation: a block wrote behind its shared memory");
  }
  return cudaSuccess;
}

char* shared() {
  const auto address = reinterpret_cast<uintptr_t>(launch->shared[running->block].data());
  return reinterpret_cast<char*>((address + kAlignment - 1) / kAlignment * kAlignment);
}

void block_barrier() { wait(launch->block_barriers[running->block]); }
void grid_barrier() { wait(launch->grid_barrier); }

const double* exchange(double value) {
  double* lanes = &launch->lanes[warp_of(*running) * kWarp];
  lanes[running->thread % kWarp] = value;
  wait(launch->warp_barriers[warp_of(*running)]);
  return lanes;
}

void exchanged() { wait(launch->warp_barriers[warp_of(*running)]); }

unsigned thread_index() { return running->thread; }
unsigned block_index() { return running->block; }
unsigned blocks() { return launch->blocks; }

}  // namespace ctm::emulation

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const auto& limits = ctm::emulation::limits();
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = limits.multiprocessors;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = limits.major;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = limits.shared;
      return cudaSuccess;
  }
  return cudaErrorInvalidValue;
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; }

cudaError_t cudaMemsetAsync(void* address, int value, size_t bytes, cudaStream_t) {
  std::memset(address, value, bytes);
  return cudaSuccess;
}

cudaError_t cudaGetLastError() { return cudaSuccess; }

const char* cudaGetErrorString(cudaError_t status) {
  return status == cudaSuccess ? "no error" : "refused by the emulation";
}
