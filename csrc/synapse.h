// The pointwise halves of a synapse layer, fused between its matrix products (arXiv 2505.05522, section 3.2).
//
//   glu_norm:   y = LN(a * sigmoid(b)),               x = [a | b] (rows, 2 width)
//   silu_norm:  y = SiLU(LN(x))                       x (rows, width)
//   skip_norm:  y = LN'(SiLU(LN(x)) + skip)           x, skip (rows, width)
//
// Backward recomputes everything from x (and skip), so nothing but x is kept. Gradients of the norms' weight
// and bias go to a fixed number of row groups, (groups, width) each, and are added to: no result depends on
// the threads.
#pragma once

#include "arguments.h"

namespace ctm {

constexpr int64_t kRowGroups = 8;

template <class T>
struct Norm {  // LayerNorm: weight, bias (width)
  const T* weight;
  const T* bias;
  T eps;
};

template <class T>
struct NormGrad {  // (kRowGroups, width) each
  T* weight;
  T* bias;
};

struct Rows {
  int64_t count, width;
};

template <class T>
struct SynapseTable {
  void (*glu_norm)(Rows, const T* x, int64_t x_row, Norm<T>, T* y, int64_t y_row, int threads);
  void (*glu_norm_backward)(Rows, const T* x, int64_t x_row, Norm<T>, const T* dy, int64_t dy_row, T* dx,
                            int64_t dx_row, NormGrad<T>, int threads);
  void (*silu_norm)(Rows, const T* x, int64_t x_row, Norm<T>, T* y, int64_t y_row, int threads);
  // dx may be dy.
  void (*silu_norm_backward)(Rows, const T* x, int64_t x_row, Norm<T>, const T* dy, int64_t dy_row, T* dx,
                             int64_t dx_row, NormGrad<T>, int threads);
  void (*skip_norm)(Rows, const T* x, int64_t x_row, Norm<T>, const T* skip, int64_t skip_row, Norm<T> outer,
                    T* y, int64_t y_row, int threads);
  void (*skip_norm_backward)(Rows, const T* x, int64_t x_row, Norm<T>, const T* skip, int64_t skip_row,
                             Norm<T> outer, const T* dy, int64_t dy_row, T* dx, int64_t dx_row, T* dskip,
                             int64_t dskip_row, NormGrad<T>, NormGrad<T> outer_grad, int threads);
  // y = x * mask / (1 - p)
  void (*dropout)(Rows, const DropoutRows&, const T* x, int64_t x_row, T* y, int64_t y_row, int threads);
};

struct SynapseKernels {
  SynapseTable<float> f32;
  SynapseTable<double> f64;
};

}  // namespace ctm
