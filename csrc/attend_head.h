// Attention of one query and one head (see attend.h). For attend_cpu.cpp and the engine, compiled with them
// once per SIMD level.
#pragma once

#include "attend.h"
#include "simd.h"

namespace ctm::CTM_LEVEL {
namespace {

template <class T, int N>
CTM_INLINE void combine_part(int64_t width, int64_t tokens, const T* x, const T* rows, T* out) {
  Vec<T> sum[N] = {};
  for (int64_t j = 0; j < width; ++j)
    CTM_UNROLL for (int i = 0; i < N; ++i) sum[i] += x[j] * load(rows + j * tokens + i * V<T>);
  CTM_UNROLL for (int i = 0; i < N; ++i) store(out + i * V<T>, sum[i]);
}

// out[l] = sum_j x[j] rows[j][l]
template <class T>
void combine(int64_t width, int64_t tokens, const T* x, const T* rows, T* out) {
  int64_t l = 0;
  for (; l + 4 * V<T> <= tokens; l += 4 * V<T>) combine_part<T, 4>(width, tokens, x, rows + l, out + l);
  for (; l + V<T> <= tokens; l += V<T>) combine_part<T, 1>(width, tokens, x, rows + l, out + l);
  for (; l < tokens; ++l) {
    T sum = 0;
    for (int64_t j = 0; j < width; ++j) sum += x[j] * rows[j * tokens + l];
    out[l] = sum;
  }
}

// out[j] = sum_l w[l] rows[j][l]
template <class T>
void dots(int64_t width, int64_t tokens, const T* w, const T* rows, T* out) {
  const int64_t whole = tokens / V<T> * V<T>;
  for (int64_t j = 0; j < width; ++j) {
    const T* row = rows + j * tokens;
    Vec<T> sum{}, other{};
    int64_t l = 0;
    for (; l + 2 * V<T> <= whole; l += 2 * V<T>) {
      sum += load(w + l) * load(row + l);
      other += load(w + l + V<T>) * load(row + l + V<T>);
    }
    if (l < whole) sum += load(w + l) * load(row + l);
    T total = sum_lanes<T>(sum + other);
    for (l = whole; l < tokens; ++l) total += w[l] * row[l];
    out[j] = total;
  }
}

// In place; an infinite or NaN score gives NaN weights as in the reference.
template <class T>
void softmax(int64_t tokens, T* w) {
  Vec<T> tops = splat(w[0]), sum{};
  for (int64_t l = 0; l < tokens; l += V<T>) {
    const Vec<T> x = load_part(w + l, part<T>(tokens, l), w[0]);
    tops = x > tops ? x : tops;
  }
  T top = tops[0];
  for (int i = 1; i < V<T>; ++i) top = tops[i] > top ? tops[i] : top;
  for (int64_t l = 0; l < tokens; l += V<T>) {
    const int used = part<T>(tokens, l);
    const Vec<T> e = exp(load_part(w + l, used, -std::numeric_limits<T>::infinity()) - top);
    store_part(w + l, e, used);
    sum += e;
  }
  const T scale = T(1) / sum_lanes<T>(sum);
  for (int64_t l = 0; l < tokens; ++l) w[l] *= scale;
}

}  // namespace
}  // namespace ctm::CTM_LEVEL
