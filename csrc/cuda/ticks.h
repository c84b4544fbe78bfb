// All ticks of a CTM's recurrent part in one kernel, for inference on few samples in float32
// (arXiv 2505.05522, section 3). The blocks stay on their multiprocessors from the first tick to the last,
// keep their rows of every matrix in shared memory where those fit, and meet at a barrier wherever one part
// reads what another wrote:
//
//   action synchronisation -> query | attention | linear map of each synapse stage | neuron-level models
//
// Every matrix is row-major (rows, columns) and contiguous. The caller folds what is linear around the
// attention: the query matrix maps the action synchronisation to the scaled query of all heads, and the first
// stage maps [heads' output | post-activations] or, at a tick with a given input, a bias row of its own plus
// the post-activations. No torch, no pybind11.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace ctm::cuda {

constexpr int kMaxStages = 32;
constexpr int kMaxBatch = 8;

struct Matrix {
  const float* weight;  // (rows, columns)
  const float* bias;    // (rows)
  int rows, columns;
};

struct LayerNorm {  // null where a stage has none
  const float *weight, *bias;
  float eps;
};

enum class StageKind : int { glu, silu, skip };

// A linear map and what follows it. glu: LN(GLU(y)); silu: SiLU(LN(y)); skip: LN'(SiLU(LN(y)) + output of the
// stage `skip`, a silu stage). It reads the output of the stage before it, the first one the input.
struct TickStage {
  StageKind kind;
  int width;  // of the output: half the rows for glu
  int skip;
  Matrix linear;
  LayerNorm norm, outer;
};

struct TickSizes {
  int ticks, batch, neurons, memory, hidden;
  bool deep;
  int stages;
  // Of the attention; all 0 without one. Heads' outputs together are `width` wide.
  int width, heads, tokens, pairs;
};

struct TickModel {
  TickSizes n;
  TickStage stages[kMaxStages];
  Matrix query;             // (width, pairs)
  const int *left, *right;  // (pairs), in [0, neurons)
  const float* decay;       // (pairs), r = exp(-decay)
  // (neurons, columns): w1 (M, 2H) and b1 (2H), then for deep models w2 (H, 2) and b2 (2), all divided by the
  // temperature.
  const float* nlm;
};

struct TickData {
  const int* inputs;  // (ticks): k >= 0 attends to keys[k], -1 - g takes given[g]; null: all are `input`
  int input;
  const float *keys, *values;  // (K, batch, tokens, width)
  const float* given;          // (G, batch, rows of the first linear map): its bias and what the input adds
  float* z;                    // (ticks + 1, batch, neurons), the first row filled
  float* history;              // (memory + ticks, batch, neurons), the first `memory` rows filled
  float* weights;              // (ticks, batch, heads, tokens) or null
  float* scratch;              // scratch_floats() of them
};

// How the kernel is launched; blocks is 0 where it cannot be, and reason says why.
struct TickLaunch {
  int blocks, threads;
  bool cluster;     // one thread-block cluster, whose barrier is quicker than the grid's
  size_t shared;    // bytes of a block
  size_t resident;  // bytes of weights that a block keeps there
  std::string reason;
};

struct TickLimits {
  int multiprocessors, shared, major;  // of the device: count, bytes of a block, major compute capability
};

TickLimits tick_limits(int device);

// Floats of scratch that the kernel needs.
size_t scratch_floats(const TickModel&);

// The launch for a device with these limits: a pure function.
TickLaunch plan_ticks(const TickModel&, const TickLimits&);

// Runs all ticks on a device and stream; throws std::invalid_argument where no launch fits and
// std::runtime_error, with the sizes, where CUDA refuses it. Capturable in a CUDA graph.
void run_ticks(const TickModel&, const TickData&, int device, void* stream);

}  // namespace ctm::cuda
