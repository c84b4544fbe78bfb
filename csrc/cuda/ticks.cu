#include "ticks.h"

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "launch.h"
#include "ticks_device.h"

namespace ctm::cuda {
namespace {

constexpr int kClusterBlocks = 16;       // beyond 8 the kernel must allow it
constexpr int kAmpere = 8, kHopper = 9;  // major compute capabilities
// Products of one head's query up to which every block that attends computes it for itself: cheaper than a
// barrier.
constexpr int kOwnQuery = 8192;

template <int BATCH>
__global__ void __launch_bounds__(kTickThreads, 1) ticks_kernel(const __grid_constant__ TickArguments a) {
  Ticks<BATCH>(a).run();
}

int padded(int columns) { return (columns + 3) / 4 * 4; }

int samples_at_once(int batch) { return batch <= 1 ? 1 : batch <= 2 ? 2 : batch <= 4 ? 4 : 8; }

// Hands out shared memory in stretches that start aligned for vectors of four floats.
class Arena {
 public:
  explicit Arena(int64_t limit) : limit_(limit) {}
  int take(int64_t floats) {
    const int64_t at = used_;
    used_ += (floats + 3) / 4 * 4;
    return static_cast<int>(at);
  }
  int take_if_it_fits(int64_t floats) { return used_ + (floats + 3) / 4 * 4 <= limit_ ? take(floats) : -1; }
  int64_t used() const { return used_; }
  bool fits() const { return used_ <= limit_; }

 private:
  int64_t limit_, used_ = 0;
};

void place_state(const TickModel& m, int blocks, TickLayout& at, Arena& arena) {
  const TickSizes& n = m.n;
  const int samples = samples_at_once(n.batch);
  int widest = n.width + n.neurons, spare = n.heads > 0 ? n.width / n.heads : 0;
  for (int s = 0; s < n.stages; ++s) {
    widest = widest > m.stages[s].width ? widest : m.stages[s].width;
    spare = spare > m.stages[s].width ? spare : m.stages[s].width;
  }
  at.stride = padded(widest);
  at.action_stride = padded(n.pairs);
  at.operand = arena.take(int64_t{samples} * at.stride);
  at.spare = arena.take(spare > kTickThreads ? spare : kTickThreads);
  at.action = arena.take(int64_t{samples} * at.action_stride);
  at.alpha = arena.take(int64_t{n.batch} * at.action_stride);
  at.beta = arena.take(at.action_stride);
  at.room = arena.take(kTickWarps);
  at.scores = arena.take(n.tokens);
  at.ring = arena.take(int64_t{largest_slice(n.neurons, blocks)} * n.batch * n.memory);
  at.hidden = arena.take(int64_t{kTickWarps} * 2 * n.hidden);
}

// A matrix that may stay in shared memory: what it saves there at every tick, and where its place is kept.
struct Candidate {
  int64_t floats, saved;
  int* place;
};

// The largest savings first: the rest streams from the second-level cache.
void place_weights(const TickModel& m, int blocks, TickLayout& at, Arena& arena) {
  const TickSizes& n = m.n;
  std::vector<Candidate> candidates;
  const int64_t nlm = int64_t{largest_slice(n.neurons, blocks)} * nlm_columns(n);
  candidates.push_back({nlm, nlm * n.batch, &at.nlm});  // read by every sample
  at.query = -1;
  if (n.pairs > 0 && !at.own_query) {
    const int64_t query = int64_t{largest_slice(n.width, blocks)} * n.pairs;
    candidates.push_back({query, query, &at.query});
  }
  for (int s = 0; s < n.stages; ++s) {
    const TickStage& stage = m.stages[s];
    const int64_t rows = int64_t{largest_slice(stage.width, blocks)} * rows_per_unit(stage);
    candidates.push_back({rows * stage.linear.columns, rows * stage.linear.columns, &at.stages[s]});
  }
  std::stable_sort(candidates.begin(), candidates.end(),
                   [](const Candidate& a, const Candidate& b) { return a.saved > b.saved; });
  for (const Candidate& c : candidates) *c.place = arena.take_if_it_fits(c.floats);
}

bool all_resident(const TickModel& m, const TickLayout& at) {
  bool all = at.nlm >= 0 && (at.query >= 0 || m.n.pairs == 0 || at.own_query);
  for (int s = 0; s < m.n.stages; ++s) all = all && at.stages[s] >= 0;
  return all;
}

// False where not even the state fits.
bool lay_out(const TickModel& m, int blocks, int shared, TickLayout& at) {
  Arena arena(shared / static_cast<int>(sizeof(float)));
  at.own_query = m.n.pairs > 0 && int64_t{m.n.width} / m.n.heads * m.n.pairs <= kOwnQuery;
  place_state(m, blocks, at, arena);
  if (!arena.fits()) return false;
  const int64_t state = arena.used();
  place_weights(m, blocks, at, arena);
  at.floats = static_cast<int>(arena.used());
  at.resident = static_cast<int>(arena.used() - state);
  return true;
}

std::string sizes_of(const TickSizes& n) {
  const auto text = [](const char* name, int value) { return std::string(name) + std::to_string(value); };
  return "(ticks " + text("", n.ticks) + text(", batch ", n.batch) + text(", neurons ", n.neurons) +
         text(", memory ", n.memory) + text(", hidden ", n.hidden) + text(", stages ", n.stages) +
         text(", width ", n.width) + text(", tokens ", n.tokens) + text(", pairs ", n.pairs) + ")";
}

struct Planned {
  TickLaunch launch;
  TickLayout at;
};

Planned planned(const TickModel& m, const TickLimits& limits, bool may_cluster) {
  Planned p{{0, kTickThreads, false, 0, 0, ""}, {}};
  if (m.n.batch < 1 || m.n.batch > kMaxBatch || m.n.stages < 1 || m.n.stages > kMaxStages) {
    p.launch.reason = "batch must be in [1, 8] and stages in [1, 32]";
    return p;
  }
  if (limits.major < kAmpere) {
    p.launch.reason = "the device must have compute capability 8.0 or newer";
    return p;
  }
  const int blocks = kClusterBlocks < limits.multiprocessors ? kClusterBlocks : limits.multiprocessors;
  p.launch.cluster = may_cluster && limits.major >= kHopper && blocks == kClusterBlocks &&
                     lay_out(m, blocks, limits.shared, p.at) && all_resident(m, p.at);
  p.launch.blocks = p.launch.cluster ? blocks : limits.multiprocessors;
  if (!p.launch.cluster && !lay_out(m, p.launch.blocks, limits.shared, p.at)) {
    p.launch.blocks = 0;
    p.launch.reason = "the state of a tick must fit into a block's shared memory";
    return p;
  }
  p.launch.shared = p.at.floats * sizeof(float);
  p.launch.resident = p.at.resident * sizeof(float);
  return p;
}

// The launch's shape and what makes all of its blocks run at once.
struct Configuration {
  Configuration(const TickLaunch& launch, void* stream) {
    config.gridDim = dim3(launch.blocks);
    config.blockDim = dim3(launch.threads);
    config.dynamicSmemBytes = launch.shared;
    config.stream = static_cast<cudaStream_t>(stream);
    config.attrs = &attribute;
    config.numAttrs = 1;
    if (launch.cluster) {
      attribute.id = cudaLaunchAttributeClusterDimension;
      attribute.val.clusterDim.x = launch.blocks;
      attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    } else {
      attribute.id = cudaLaunchAttributeCooperative;
      attribute.val.cooperative = 1;
    }
  }
  Configuration(const Configuration&) = delete;
  Configuration& operator=(const Configuration&) = delete;

  cudaLaunchAttribute attribute{};
  cudaLaunchConfig_t config{};
};

// Whether the device has room for the cluster in one of its groups of multiprocessors.
template <class Kernel>
bool holds_cluster(Kernel kernel, const Configuration& c) {
  int clusters = 0;
  const bool asked = cudaOccupancyMaxActiveClusters(&clusters, kernel, &c.config) == cudaSuccess;
  if (!asked) cudaGetLastError();  // clears it: the grid version runs instead
  return asked && clusters > 0;
}

template <class Kernel>
void launch(Kernel kernel, const TickModel& m, const TickData& data, const TickLimits& limits,
            bool may_cluster, void* stream) {
  const Planned p = planned(m, limits, may_cluster);
  const std::string sizes = sizes_of(m.n);
  if (p.launch.blocks == 0) throw std::invalid_argument("ticks: " + p.launch.reason + ", got " + sizes);
  const Configuration c(p.launch, stream);
  // A ceiling, the same for every call: threads that launch at once share it.
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, limits.shared), "ticks",
        sizes);
  if (p.launch.cluster) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "ticks", sizes);
    if (!holds_cluster(kernel, c)) return launch(kernel, m, data, limits, false, stream);
  }
  check(cudaMemsetAsync(data.scratch, 0, kCounterFloats * sizeof(float), c.config.stream), "ticks", sizes);
  check(cudaLaunchKernelEx(&c.config, kernel, TickArguments{m, data, p.at, p.launch.cluster}), "ticks",
        sizes);
}

}  // namespace

TickLimits tick_limits(int device) {
  TickLimits found;
  const auto read = [&](cudaDeviceAttr attribute, int& value) {
    check(cudaDeviceGetAttribute(&value, attribute, device), "ticks", "(reading the device's limits)");
  };
  read(cudaDevAttrMultiProcessorCount, found.multiprocessors);
  read(cudaDevAttrMaxSharedMemoryPerBlockOptin, found.shared);
  read(cudaDevAttrComputeCapabilityMajor, found.major);
  return found;
}

size_t scratch_floats(const TickModel& m) { return scratch_stage(m, m.n.stages); }

TickLaunch plan_ticks(const TickModel& m, const TickLimits& limits) {
  return planned(m, limits, true).launch;
}

void run_ticks(const TickModel& m, const TickData& data, int device, void* stream) {
  const DeviceGuard guard(device);
  const TickLimits limits = tick_limits(device);
  switch (samples_at_once(m.n.batch)) {
    case 1:
      return launch(ticks_kernel<1>, m, data, limits, true, stream);
    case 2:
      return launch(ticks_kernel<2>, m, data, limits, true, stream);
    case 4:
      return launch(ticks_kernel<4>, m, data, limits, true, stream);
    default:
      return launch(ticks_kernel<8>, m, data, limits, true, stream);
  }
}

}  // namespace ctm::cuda
