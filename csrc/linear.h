// Linear maps of a few rows by weights that stay the same for many ticks: packed once, then streamed.
//
//   y[r][n] = init[r][n] + sum_k x[r][k] w[n][k]
//
// Vendor GEMMs are tuned for many rows; with 1 to 32 of them the packed panels below run at a multiple of
// their rate. Packed: panels of two vectors of outputs, [ceil(N / panel)][K][panel], zero beyond N, bound to
// the SIMD level that packed them: with another one in use run throws std::invalid_argument.
#pragma once

#include <cstdint>

namespace ctm {

struct LinearSizes {
  int64_t rows, outputs, inputs;
};

template <class T>
struct LinearTable {
  int64_t (*packed_size)(int64_t outputs, int64_t inputs);
  // w[n][k] lies at w + n * w_out + k * w_in.
  void (*pack)(int64_t outputs, int64_t inputs, const T* w, int64_t w_out, int64_t w_in, T* packed,
               int threads);
  // init may be null (zero), y itself (add to it), or have init_row = 0 (one bias for all rows). y overlaps
  // nothing else.
  void (*run)(LinearSizes, const T* x, int64_t x_row, const T* packed, const T* init, int64_t init_row, T* y,
              int64_t y_row, int threads);
};

struct LinearKernels {
  LinearTable<float> f32;
  LinearTable<double> f64;
};

}  // namespace ctm
