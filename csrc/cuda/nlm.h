// Neuron-level models of two layers on CUDA, forward in float32 (arXiv 2505.05522, section 3.3); the
// mathematics of csrc/nlm.h. Weights are packed neuron by neuron as the Triton kernels take them
// (ctm_fast/ops/nlm/device.py):
//
//   [M][H][a | g]  w1     [H][a | g]  b1     [H][a | g]  w2     [a | g]  b2     t1  t2     up to a whole line
//
// A thread computes whole rows of one neuron: their inputs stay in its registers, the weights come from
// shared memory once for all rows of a warp, and no sum crosses threads. So M and H are fixed at compile
// time.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace ctm::cuda {

struct NlmSizes {
  int rows, neurons, memory, hidden;
};

struct NlmStrides {  // of x, in floats
  int64_t row, neuron, memory;
};

// (M, H) that there are kernels for.
std::vector<std::pair<int, int>> nlm_models();

// Writes z (rows, neurons), contiguous, of rows x[row][neuron][m]; packed is aligned for vectors of four.
// Throws std::invalid_argument for other models, std::runtime_error where CUDA refuses.
void nlm_forward(const NlmSizes&, const float* packed, const float* x, NlmStrides, float* z, int device,
                 void* stream);

}  // namespace ctm::cuda
