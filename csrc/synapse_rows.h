// Rows of the pointwise halves of a synapse layer (see synapse.h). For synapse_cpu.cpp and the engine,
// compiled with them once per SIMD level.
#pragma once

#include "simd.h"
#include "synapse.h"

namespace ctm::CTM_LEVEL {
namespace {

// Calls body(first element, vector or scalar tag's width) over a row: whole vectors, then one partial.
template <class T, class Body>
CTM_INLINE void over_row(int64_t width, const Body& body) {
  int64_t i = 0;
  for (; i + V<T> <= width; i += V<T>) body(i, V<T>);
  if (i < width) body(i, static_cast<int>(width - i));
}

template <class T>
struct Stats {
  T mean, rstd;
};

// Two passes: the variance is taken about the mean.
template <class T>
CTM_INLINE Stats<T> statistics(int64_t width, const T* x, T eps) {
  Vec<T> sum{};
  over_row<T>(width, [&](int64_t i, int n) { sum += load_part(x + i, n); });
  const T mean = sum_lanes<T>(sum) / static_cast<T>(width);
  Vec<T> square{};
  over_row<T>(width, [&](int64_t i, int n) {
    const Vec<T> d = load_part(x + i, n, mean) - mean;
    square += d * d;
  });
  return {mean, T(1) / std::sqrt(sum_lanes<T>(square) / static_cast<T>(width) + eps)};
}

template <class T>
CTM_INLINE Vec<T> normalise(const T* x, int64_t i, int n, Stats<T> s, const Norm<T>& norm) {
  const Vec<T> hat = (load_part(x + i, n) - s.mean) * s.rstd;
  return hat * load_part(norm.weight + i, n) + load_part(norm.bias + i, n);
}

template <class T>
void gated(int64_t width, const T* x, T* out) {
  over_row<T>(width, [&](int64_t i, int n) {
    store_part(out + i, load_part(x + i, n) * sigmoid(load_part(x + width + i, n)), n);
  });
}

template <class T>
void norm_row(int64_t width, const T* x, const Norm<T>& norm, T* y) {
  const Stats<T> s = statistics(width, x, norm.eps);
  over_row<T>(width, [&](int64_t i, int n) { store_part(y + i, normalise(x, i, n, s, norm), n); });
}

template <class T>
void silu_norm_row(int64_t width, const T* x, const Norm<T>& norm, T* y) {
  const Stats<T> s = statistics(width, x, norm.eps);
  over_row<T>(width, [&](int64_t i, int n) {
    const Vec<T> value = normalise(x, i, n, s, norm);
    store_part(y + i, value * sigmoid(value), n);
  });
}

// v = SiLU(LN(x)) + skip
template <class T>
void skipped(int64_t width, const T* x, const Norm<T>& norm, const T* skip, T* v) {
  silu_norm_row(width, x, norm, v);
  over_row<T>(width,
              [&](int64_t i, int n) { store_part(v + i, load_part(v + i, n) + load_part(skip + i, n), n); });
}

}  // namespace
}  // namespace ctm::CTM_LEVEL
