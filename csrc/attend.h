// Attention of one query per sample over keys and values that stay the same for all ticks.
//
//   w = softmax_l(sum_j q[j] k[j][l]),   o[j] = sum_l w[l] v[j][l]      for every (batch, head)
//
// keys, values (B, heads, width, L), tokens innermost: every product runs over whole vectors of tokens and
// the softmax needs no transpose. q, o (B, heads * width) with a row stride; q carries the 1 / sqrt(width).
// Dropout acts on w after the softmax, as in multi-head attention; its row is first_row + batch index.
#pragma once

#include "arguments.h"

namespace ctm {

struct AttendSizes {
  int64_t batch, heads, width, tokens;
};

template <class T>
struct AttendTable {
  // weights (B, heads, L): the softmax, after dropout.
  void (*forward)(const AttendSizes&, const DropoutRows&, const T* q, int64_t q_row, const T* keys,
                  const T* values, T* weights, T* o, int64_t o_row, int threads);
  // Recomputes weights (B, heads, L, before dropout) and dropped (after it; null if p = 0); scores (B, heads,
  // L) is the gradient of the scores. The gradients of keys and values follow from them for all ticks at
  // once.
  void (*backward)(const AttendSizes&, const DropoutRows&, const T* q, int64_t q_row, const T* keys,
                   const T* values, const T* grad, int64_t grad_row, T* dropped, T* weights, T* scores, T* dq,
                   int64_t dq_row, int threads);
};

struct AttendKernels {
  AttendTable<float> f32;
  AttendTable<double> f64;
};

}  // namespace ctm
