// Panels of a linear map (see linear.h): packing them, and register tiles of a few rows. For linear_cpu.cpp
// and the engine, compiled with them once per SIMD level.
#pragma once

#include "linear.h"
#include "packed.h"
#include "parallel.h"

namespace ctm::CTM_LEVEL {
namespace {

template <class T>
constexpr int kPanel = 2 * V<T>;
constexpr int64_t kDepth = 128;  // inputs summed before they are added to the result: short sums round less

template <class T>
int64_t panel_count(int64_t outputs) {
  return (outputs + kPanel<T> - 1) / kPanel<T>;
}

// Outputs innermost in w: the panel's rows are copied.
template <class T>
void copy_panel(int64_t inputs, int used, const T* from, int64_t w_in, T* to) {
  constexpr int P = kPanel<T>;
  const int first = used < V<T> ? used : V<T>, second = used - first;
  for (int64_t k = 0; k < inputs; ++k) {
    store(to + k * P, load_part(from + k * w_in, first));
    store(to + k * P + V<T>, second ? load_part(from + k * w_in + V<T>, second) : Vec<T>{});
  }
}

// Inputs innermost in w: transposed by squares that stay in the first-level cache.
template <class T>
void transpose_panel(int64_t inputs, int used, const T* from, int64_t w_out, T* to) {
  constexpr int P = kPanel<T>, K = V<T>;
  T square[P * K] = {};
  for (int64_t k0 = 0; k0 < inputs; k0 += K) {
    const int depth = part<T>(inputs, k0);
    for (int l = 0; l < used; ++l) store(square + l * K, load_part(from + l * w_out + k0, depth));
    for (int k = 0; k < depth; ++k)
      for (int l = 0; l < P; ++l) to[(k0 + k) * P + l] = square[l * K + k];
  }
}

// Neither: element by element.
template <class T>
void gather_panel(int64_t inputs, int used, const T* from, int64_t w_out, int64_t w_in, T* to) {
  constexpr int P = kPanel<T>;
  for (int64_t k = 0; k < inputs; ++k)
    for (int l = 0; l < P; ++l) to[k * P + l] = l < used ? from[l * w_out + k * w_in] : T(0);
}

// Panel `panel` of a map, w[n][k] at w + n * w_out + k * w_in.
template <class T>
void pack_panel(int64_t panel, int64_t outputs, int64_t inputs, const T* w, int64_t w_out, int64_t w_in,
                T* blocks) {
  constexpr int P = kPanel<T>;
  T* to = blocks + panel * P * inputs;
  const T* from = w + panel * P * w_out;
  const int64_t left = outputs - panel * P;
  const int used = static_cast<int>(left < P ? left : P);
  if (w_out == 1)
    copy_panel(inputs, used, from, w_in, to);
  else if (w_in == 1)
    transpose_panel(inputs, used, from, w_out, to);
  else
    gather_panel(inputs, used, from, w_out, w_in, to);
}

// R rows of one panel: y = init + x w over inputs [0, inputs), in slices of kDepth.
template <class T, int R>
CTM_INLINE void tile(int64_t inputs, const T* x, int64_t x_row, const T* w, const T* init, int64_t init_row,
                     T* y, int64_t y_row, int used) {
  const int first = used < V<T> ? used : V<T>, second = used - first;
  Vec<T> total[R][2];
  CTM_UNROLL for (int r = 0; r < R; ++r) {
    total[r][0] = init ? load_part(init + r * init_row, first) : Vec<T>{};
    total[r][1] = init && second ? load_part(init + r * init_row + V<T>, second) : Vec<T>{};
  }
  for (int64_t k0 = 0; k0 < inputs; k0 += kDepth) {
    const int64_t end = k0 + kDepth < inputs ? k0 + kDepth : inputs;
    Vec<T> sum[R][2] = {};
    for (int64_t k = k0; k < end; ++k) {
      const Vec<T> a = load(w + k * kPanel<T>), b = load(w + k * kPanel<T> + V<T>);
      CTM_UNROLL for (int r = 0; r < R; ++r) {
        const T value = x[r * x_row + k];
        sum[r][0] += value * a;
        sum[r][1] += value * b;
      }
    }
    CTM_UNROLL for (int r = 0; r < R; ++r) total[r][0] += sum[r][0], total[r][1] += sum[r][1];
  }
  CTM_UNROLL for (int r = 0; r < R; ++r) {
    store_part(y + r * y_row, total[r][0], first);
    if (second) store_part(y + r * y_row + V<T>, total[r][1], second);
  }
}

template <class T, int R>
CTM_INLINE void rows_of_panel(int64_t row, const LinearSizes& n, const T* x, int64_t x_row, const T* w,
                              const T* init, int64_t init_row, T* y, int64_t y_row, int used) {
  for (; row + R <= n.rows; row += R)
    tile<T, R>(n.inputs, x + row * x_row, x_row, w, init ? init + row * init_row : nullptr, init_row,
               y + row * y_row, y_row, used);
  if constexpr (R > 1) rows_of_panel<T, R / 2>(row, n, x, x_row, w, init, init_row, y, y_row, used);
}

constexpr int kWide = CTM_ROWS / 2;  // panels of one row at once, whose sums hide each other's latency

// One row of kWide whole panels, `panel` elements apart: the sums of a tile, bit by bit.
template <class T>
CTM_INLINE void wide_tile(int64_t inputs, const T* x, const T* w, int64_t panel, const T* init, T* y) {
  constexpr int N = 2 * kWide;
  Vec<T> total[N];
  CTM_UNROLL for (int i = 0; i < N; ++i) total[i] = init ? load(init + i * V<T>) : Vec<T>{};
  for (int64_t k0 = 0; k0 < inputs; k0 += kDepth) {
    const int64_t end = k0 + kDepth < inputs ? k0 + kDepth : inputs;
    Vec<T> sum[N] = {};
    for (int64_t k = k0; k < end; ++k) {
      const T value = x[k];
      CTM_UNROLL for (int i = 0; i < N; ++i) sum[i] +=
          value * load(w + i / 2 * panel + k * kPanel<T> + i % 2 * V<T>);
    }
    CTM_UNROLL for (int i = 0; i < N; ++i) total[i] += sum[i];
  }
  CTM_UNROLL for (int i = 0; i < N; ++i) store(y + i * V<T>, total[i]);
}

}  // namespace
}  // namespace ctm::CTM_LEVEL
