// Neuron-level models: D private MLPs over the last M pre-activations (arXiv 2505.05522, section 3.3).
//
//   deep:    u = x w1 + b1 (2H),  h = u[:H] * sigmoid(u[H:]),  o = h w2 + b2 (2),  z = o[0] * sigmoid(o[1])
//   linear:  u = x w1 + b1 (2),   z = u[0] * sigmoid(u[1])                          (H = 1, no w2)
//
// A "row" is one (tick, batch) pair. x[row][neuron][m] lies at x + row * s.row + neuron * s.neuron + m *
// s.memory, so a (B, D, M) tensor, a window of a (T + M, B, D) history and all T windows of it at once are
// the same call. One vector lane is one neuron. Weights are packed in blocks of `lanes` neurons:
//   [H][M + 1][a | g][lanes]  (row M is the bias), then for deep models [H + 1][a | g][lanes].
// They are bound to the SIMD level that packed them: with another one in use the kernels throw
// std::invalid_argument.
#pragma once

#include "arguments.h"

namespace ctm {

struct NlmSizes {
  int64_t rows, neurons, memory, hidden;
  bool deep;
};

struct NlmStrides {
  int64_t row, neuron, memory;
};

struct NlmKernels {
  // Number of elements of a packed buffer.
  int64_t (*packed_size)(Storage, const NlmSizes&);
  // w1 (M, 2H, D), b1 (D, 2H), w2 (H, 2, D), b2 (D, 2), all contiguous; t1, t2 scalars that divide. Writes
  // packed.
  void (*pack)(Storage, const NlmSizes&, const void* w1, const void* b1, double t1, const void* w2,
               const void* b2, double t2, void* packed, int threads);
  // The transpose of pack: gradients of the packed buffer to gradients of w1, b1, t1 (1), w2, b2, t2 (1).
  void (*unpack)(Storage, const NlmSizes&, const void* packed, const void* grad, double t1, double t2,
                 void* w1, void* b1, void* t1_grad, void* w2, void* b2, void* t2_grad, int threads);
  // Writes z (rows, D) with row stride z_row. Storage of x; compute and packed are f32 unless x is f64.
  // bf16 writes z as bf16.
  void (*forward)(Storage, const NlmSizes&, const DropoutRows&, const void* packed, const void* x, NlmStrides,
                  void* z, int64_t z_row, int threads);
  // The same bits from unpacked weights (as pack takes them): quicker for a row or two, whose packing would
  // take longer than their forward.
  void (*direct)(Storage, const NlmSizes&, const DropoutRows&, const void* w1, const void* b1, double t1,
                 const void* w2, const void* b2, double t2, const void* x, NlmStrides, void* z, int64_t z_row,
                 int threads);
  // dz (rows, D) in compute precision. dx (may be null) is added to at dx_strides in compute precision;
  // dpacked (may be null) is added to.
  void (*backward)(Storage, const NlmSizes&, const DropoutRows&, const void* packed, const void* x,
                   NlmStrides, const void* dz, int64_t dz_row, void* dx, NlmStrides dx_strides, void* dpacked,
                   int threads);
};

}  // namespace ctm
