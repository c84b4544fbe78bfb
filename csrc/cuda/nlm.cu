#include "nlm.h"

#include <stdexcept>

#include "launch.h"
#include "thread_block.h"

namespace ctm::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;
constexpr int kLine = 32;  // floats; a neuron's weights begin a line of their own

// How the warps of a block share neurons: `share` of them take tiles of rows of the same neuron.
struct Grid {
  int share, neuron_groups, tile_groups;
  int neurons_of_block() const { return kWarps / share; }
};

struct NlmArguments {
  NlmSizes n;
  NlmStrides strides;
  const float *packed, *x;
  float* z;
  int share, tile_groups;
};

constexpr int kOutputs = 4;  // of the first layer at once: a and g of two hidden units

struct Weights {  // kOutputs neighbours, loaded at once
  float v[kOutputs];
  __device__ explicit Weights(const float* w) {
    const float4 found = *reinterpret_cast<const float4*>(w);
    v[0] = found.x, v[1] = found.y, v[2] = found.z, v[3] = found.w;
  }
};

// Where a neuron's packed weights lie.
template <int MEMORY, int HIDDEN>
struct Packed {
  static constexpr int kBias = MEMORY * 2 * HIDDEN;
  static constexpr int kSecond = kBias + 2 * HIDDEN;
  static constexpr int kDivisors = kSecond + 2 * HIDDEN + 2;
  static constexpr int kSize = (kDivisors + 2 + kLine - 1) / kLine * kLine;
};

// One neuron's models on ROWS rows of a thread.
template <int MEMORY, int HIDDEN, int ROWS>
struct Neuron {
  using At = Packed<MEMORY, HIDDEN>;

  const float* w;
  float x[ROWS][MEMORY];

  __device__ void first_layer(int at, float scale, float (&u)[ROWS][kOutputs]) const {
    const Weights b(w + At::kBias + at);
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
#pragma unroll
      for (int o = 0; o < kOutputs; ++o) u[r][o] = b.v[o];
    }
#pragma unroll
    for (int m = 0; m < MEMORY; ++m) {
      const Weights row(w + m * 2 * HIDDEN + at);
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
#pragma unroll
        for (int o = 0; o < kOutputs; ++o) u[r][o] += x[r][m] * row.v[o];
      }
    }
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
#pragma unroll
      for (int o = 0; o < kOutputs; ++o) u[r][o] *= scale;
    }
  }

  // What the last gate takes in.
  __device__ void outputs(float (&sum)[ROWS], float (&gate)[ROWS]) const {
    const float* second = w + At::kSecond;
    const float *b2 = second + 2 * HIDDEN, *divisors = w + At::kDivisors;
    const float scale = 1.0f / divisors[0], scale2 = 1.0f / divisors[1];
    float u[ROWS][kOutputs];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) sum[r] = b2[0], gate[r] = b2[1];
    for (int at = 0; at < 2 * HIDDEN; at += kOutputs) {
      first_layer(at, scale, u);
      const Weights w2(second + at);
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
#pragma unroll
        for (int o = 0; o < kOutputs; o += 2) {
          const float v = u[r][o] * sigmoid(u[r][o + 1]);
          sum[r] += v * w2.v[o];
          gate[r] += v * w2.v[o + 1];
        }
      }
    }
#pragma unroll
    for (int r = 0; r < ROWS; ++r) sum[r] *= scale2, gate[r] *= scale2;
  }
};

template <int MEMORY, int HIDDEN, int ROWS>
__device__ void forward_rows(const NlmArguments& a, const float* weights, int neuron, int first_row) {
  Neuron<MEMORY, HIDDEN, ROWS> own;
  own.w = weights;
  const float* x = a.x + neuron * a.strides.neuron;
#pragma unroll
  for (int r = 0; r < ROWS; ++r) {
    const int row = first_row + r * kWarp;
#pragma unroll
    for (int m = 0; m < MEMORY; ++m) {
      own.x[r][m] = row < a.n.rows ? x[row * a.strides.row + m * a.strides.memory] : 0.0f;
    }
  }
  float sum[ROWS], gate[ROWS];
  own.outputs(sum, gate);
#pragma unroll
  for (int r = 0; r < ROWS; ++r) {
    const int row = first_row + r * kWarp;
    if (row < a.n.rows) a.z[int64_t{row} * a.n.neurons + neuron] = sum[r] * sigmoid(gate[r]);
  }
}

template <int MEMORY, int HIDDEN, int ROWS>
__global__ void __launch_bounds__(kThreads, 1) nlm_kernel(const __grid_constant__ NlmArguments a) {
  constexpr int kSize = Packed<MEMORY, HIDDEN>::kSize;
  const int neurons = kWarps / a.share, group = blockIdx.x / a.tile_groups;
  const int first = group * neurons, last = min(first + neurons, a.n.neurons);
  float4* shared = reinterpret_cast<float4*>(shared_memory());
  const float4* packed = reinterpret_cast<const float4*>(a.packed + int64_t{first} * kSize);
  for (int i = threadIdx.x; i < (last - first) * (kSize / 4); i += kThreads) shared[i] = packed[i];
  __syncthreads();
  const int slot = warp() / a.share, neuron = first + slot;
  const int tile = blockIdx.x % a.tile_groups * a.share + warp() % a.share;
  if (neuron >= last || int64_t{tile} * ROWS * kWarp >= a.n.rows) return;
  forward_rows<MEMORY, HIDDEN, ROWS>(a, shared_memory() + slot * kSize, neuron, tile * ROWS * kWarp + lane());
}

std::string sizes_of(const NlmSizes& n) {
  return "(rows " + std::to_string(n.rows) + ", neurons " + std::to_string(n.neurons) + ", memory " +
         std::to_string(n.memory) + ", hidden " + std::to_string(n.hidden) + ")";
}

// As many warps as there are tiles of rows share a neuron, so that its weights are loaded once.
Grid grid_of(const NlmSizes& n, int rows_of_tile) {
  const int tiles = (n.rows + rows_of_tile - 1) / rows_of_tile;
  const int share = tiles >= 4 ? 4 : tiles >= 2 ? 2 : 1, neurons = kWarps / share;
  return {share, (n.neurons + neurons - 1) / neurons, (tiles + share - 1) / share};
}

template <int MEMORY, int HIDDEN, int ROWS>
void launch(NlmArguments a, void* stream) {
  const Grid grid = grid_of(a.n, ROWS * kWarp);
  const auto kernel = nlm_kernel<MEMORY, HIDDEN, ROWS>;
  const std::string sizes = sizes_of(a.n);
  constexpr int kNeuron = Packed<MEMORY, HIDDEN>::kSize * static_cast<int>(sizeof(float));
  a.share = grid.share, a.tile_groups = grid.tile_groups;
  // A ceiling, the same for every call: threads that launch at once share it.
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kWarps * kNeuron),
        "nlm_forward", sizes);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(grid.neuron_groups * grid.tile_groups);
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = kNeuron * grid.neurons_of_block();
  config.stream = static_cast<cudaStream_t>(stream);
  check(cudaLaunchKernelEx(&config, kernel, a), "nlm_forward", sizes);
}

// Rows of a thread: no more than fill a warp, nor than its registers hold beside each other.
template <int MEMORY, int HIDDEN>
void launch_rows(const NlmArguments& a, void* stream) {
  constexpr int kRows = MEMORY <= 32 ? 2 : 1;
  if (a.n.rows <= kWarp) return launch<MEMORY, HIDDEN, 1>(a, stream);
  return launch<MEMORY, HIDDEN, kRows>(a, stream);
}

template <int MEMORY, int HIDDEN>
struct Model {
  static constexpr int kMemory = MEMORY, kHidden = HIDDEN;
};

template <class... M>
struct Models {
  static std::vector<std::pair<int, int>> all() { return {{M::kMemory, M::kHidden}...}; }
  static bool run(const NlmArguments& a, void* stream) {
    const auto fits = [&](int memory, int hidden) { return a.n.memory == memory && a.n.hidden == hidden; };
    return ((fits(M::kMemory, M::kHidden) && (launch_rows<M::kMemory, M::kHidden>(a, stream), true)) || ...);
  }
};

// Memory lengths and hidden widths of the published models.
using Compiled = Models<Model<5, 4>, Model<10, 4>, Model<20, 4>, Model<25, 4>, Model<50, 4>, Model<10, 8>,
                        Model<15, 8>, Model<5, 16>, Model<10, 16>, Model<20, 16>, Model<25, 16>,
                        Model<30, 16>, Model<50, 16>, Model<25, 32>, Model<15, 64>, Model<25, 64>>;

}  // namespace

std::vector<std::pair<int, int>> nlm_models() { return Compiled::all(); }

void nlm_forward(const NlmSizes& n, const float* packed, const float* x, NlmStrides strides, float* z,
                 int device, void* stream) {
  if (n.rows == 0 || n.neurons == 0) return;
  const DeviceGuard guard(device);
  if (Compiled::run({n, strides, packed, x, z, 1, 1}, stream)) return;
  throw std::invalid_argument("nlm_forward: memory and hidden must be one of nlm_models(), got " +
                              sizes_of(n));
}

}  // namespace ctm::cuda
