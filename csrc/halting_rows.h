// Rows of recurrent cells and of adaptive computation time (see halting.h). For halting_cpu.cpp and the
// engine of cells, compiled with them once per SIMD level.
#pragma once

#include "halting.h"
#include "simd.h"

namespace ctm::CTM_LEVEL {
namespace {

template <class T>
CTM_INLINE T dot_row(int64_t width, const T* a, const T* b) {
  Vec<T> sum{};
  int64_t j = 0;
  for (; j + V<T> <= width; j += V<T>) sum += load(a + j) * load(b + j);
  T total = sum_lanes<T>(sum);
  for (; j < width; ++j) total += a[j] * b[j];
  return total;
}

// y = a x, or y += a x
template <class T>
CTM_INLINE void scale_row(int64_t width, T a, const T* x, T* y, bool add) {
  for (int64_t j = 0; j < width; j += V<T>) {
    const int n = part<T>(width, j);
    const Vec<T> v = a * load_part(x + j, n);
    store_part(y + j, add ? load_part(y + j, n) + v : v, n);
  }
}

// The sum of a gate's three parts at column j: recurrent product, input, and the flag where there is one.
template <class T>
CTM_INLINE Vec<T> gate(const T* product, const T* input, const T* flag, int64_t j, int n) {
  const Vec<T> sum = load_part(product + j, n) + load_part(input + j, n);
  return flag ? sum + load_part(flag + j, n) : sum;
}

template <class T>
CTM_INLINE void rnn_cell(int64_t width, const T* input, const T* flag, T* hidden) {
  for (int64_t j = 0; j < width; j += V<T>) {
    const int n = part<T>(width, j);
    store_part(hidden + j, tanh(gate(hidden, input, flag, j, n)), n);
  }
}

template <class T>
CTM_INLINE void lstm_cell(int64_t width, const T* input, const T* flag, const T* before, T* gates, T* cell,
                          T* hidden) {
  for (int64_t j = 0; j < width; j += V<T>) {
    const int n = part<T>(width, j);
    const Vec<T> i = sigmoid(gate(gates, input, flag, j, n));
    const Vec<T> f = sigmoid(gate(gates, input, flag, width + j, n));
    const Vec<T> g = tanh(gate(gates, input, flag, 2 * width + j, n));
    const Vec<T> o = sigmoid(gate(gates, input, flag, 3 * width + j, n));
    const Vec<T> c = f * load_part(before + j, n) + i * g;
    store_part(gates + j, i, n), store_part(gates + width + j, f, n);
    store_part(gates + 2 * width + j, g, n), store_part(gates + 3 * width + j, o, n);
    store_part(cell + j, c, n), store_part(hidden + j, o * tanh(c), n);
  }
}

// What the halting unit makes of a substep: its probability, its weight, and whether the sample ends there.
template <class T>
struct Verdict {
  T probability, weight;
  bool ends;
};

// `total`: the sum of the probabilities before.
template <class T>
CTM_INLINE Verdict<T> judge(int64_t width, const T* hidden, const T* halting, T bias, T total, T threshold,
                            bool last) {
  const T p = logistic(dot_row(width, hidden, halting) + bias);
  const bool ends = last || total + p >= threshold;
  return {p, ends ? T(1) - total : p, ends};
}

}  // namespace
}  // namespace ctm::CTM_LEVEL
