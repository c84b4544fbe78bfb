// Panels of a linear map (see linear.h): packing them, and register tiles of a few rows. For linear_cpu.cpp
// and the engine, compiled with them once per SIMD level.
#pragma once

#include "linear.h"
#include "narrow.h"
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

// Neither, or to another type: element by element.
template <class T, class W>
void gather_panel(int64_t inputs, int used, const W* from, int64_t w_out, int64_t w_in, W* to) {
  constexpr int P = kPanel<T>;
  for (int64_t k = 0; k < inputs; ++k)
    for (int l = 0; l < P; ++l) to[k * P + slot<W>(l)] = l < used ? from[l * w_out + k * w_in] : W{};
}

// Panel `panel` of a map, w[n][k] at w + n * w_out + k * w_in; weights W of sums in T.
template <class T, class W>
void pack_panel(int64_t panel, int64_t outputs, int64_t inputs, const W* w, int64_t w_out, int64_t w_in,
                W* blocks) {
  constexpr int P = kPanel<T>;
  W* to = blocks + panel * P * inputs;
  const W* from = w + panel * P * w_out;
  const int64_t left = outputs - panel * P;
  const int used = static_cast<int>(left < P ? left : P);
  if constexpr (std::is_same_v<T, W>) {
    if (w_out == 1) return copy_panel(inputs, used, from, w_in, to);
    if (w_in == 1) return transpose_panel(inputs, used, from, w_out, to);
  }
  gather_panel<T>(inputs, used, from, w_out, w_in, to);
}

// Rows in and out of a map, the next one x_row, init_row and y_row further; init may be null.
template <class T>
struct Rows {
  const T* x;
  int64_t x_row;
  const T* init;
  int64_t init_row;
  T* y;
  int64_t y_row;

  CTM_INLINE Rows at(int64_t row, int64_t output) const {
    return {x + row * x_row,          x_row, init ? init + row * init_row + output : nullptr, init_row,
            y + row * y_row + output, y_row};
  }
};

// Neighbouring panels, `stride` weights apart, and the scale of every output where they have one.
template <class W>
struct Panels {
  const W* weights;
  int64_t stride;
  const float* scale;

  CTM_INLINE Panels at(int64_t panel, int width) const {
    return {weights + panel * stride, stride, kScaled<W> ? scale + panel * width : nullptr};
  }
};

// R rows of N panels, of which `used` outputs count: y = init + x w over inputs [0, inputs), in slices of
// kDepth. One row needs several panels at once, whose sums hide each other's latency.
template <class T, int R, int N, class W>
CTM_INLINE void tile(int64_t inputs, const Rows<T>& rows, const Panels<W>& panels, int64_t used) {
  constexpr int P = kPanel<T>, A = 2 * N;
  const auto lanes_of = [&](int i) { return used <= i * V<T> ? 0 : part<T>(used, i * V<T>); };
  Vec<T> total[R][A];
  CTM_UNROLL for (int r = 0; r < R; ++r) CTM_UNROLL for (int i = 0; i < A; ++i) total[r][i] =
      rows.init ? load_part(rows.init + r * rows.init_row + i * V<T>, lanes_of(i)) : Vec<T>{};
  for (int64_t k0 = 0; k0 < inputs; k0 += kDepth) {
    const int64_t end = k0 + kDepth < inputs ? k0 + kDepth : inputs;
    Vec<T> sum[R][A] = {};
    for (int64_t k = k0; k < end; ++k) {
      Pair<T> w[N];
      CTM_UNROLL for (int i = 0; i < N; ++i) w[i] = load_pair(panels.weights + i * panels.stride + k * P);
      CTM_UNROLL for (int r = 0; r < R; ++r) {
        const T value = rows.x[r * rows.x_row + k];
        CTM_UNROLL for (int i = 0; i < N; ++i) {
          sum[r][2 * i] += value * w[i].first;
          sum[r][2 * i + 1] += value * w[i].second;
        }
      }
    }
    CTM_UNROLL for (int r = 0; r < R; ++r) CTM_UNROLL for (int i = 0; i < A; ++i) {
      if constexpr (kScaled<W>)
        total[r][i] += sum[r][i] * load(panels.scale + i * V<T>);
      else
        total[r][i] += sum[r][i];
    }
  }
  CTM_UNROLL for (int r = 0; r < R; ++r) CTM_UNROLL for (int i = 0; i < A; ++i)
      store_part(rows.y + r * rows.y_row + i * V<T>, total[r][i], lanes_of(i));
}

// Rows [row, end), R at once, by N panels, then N / 2, ..., from output `at` on.
template <class T, int R, int N, class W>
CTM_INLINE void panels_of_rows(int64_t at, int64_t row, int64_t end, const LinearSizes& n,
                               const Rows<T>& rows, const Panels<W>& panels) {
  constexpr int P = kPanel<T>;
  for (; at + (N - 1) * P < n.outputs; at += N * P)
    for (int64_t r = row; r < end; r += R)
      tile<T, R, N>(n.inputs, rows.at(r, at), panels.at(at / P, P), n.outputs - at);
  if constexpr (N > 1) panels_of_rows<T, R, N / 2>(at, row, end, n, rows, panels);
}

// Rows from `row` on, by R, then R / 2, ...: a tile of R rows has as many as `Wide` / R panels.
template <class T, int R, int Wide, class W>
CTM_INLINE void rows_of_panels(int64_t row, const LinearSizes& n, const Rows<T>& rows,
                               const Panels<W>& panels) {
  const int64_t end = row + (n.rows - row) / R * R;
  if (row < end) panels_of_rows<T, R, (Wide > R ? Wide / R : 1)>(0, row, end, n, rows, panels);
  if constexpr (R > 1) rows_of_panels<T, R / 2, Wide>(end, n, rows, panels);
}

constexpr int kWide = CTM_ROWS / 2;  // panels of one row at once

}  // namespace
}  // namespace ctm::CTM_LEVEL
