// Vectors over the slots of one sample's memory. A memory is (W, P) with slots innermost, P the number of
// slots N rounded up to whole vectors: a lane is a slot. Lanes beyond N hold zeros in every array that is
// summed.
#pragma once

#include "buffer.h"
#include "simd.h"

namespace ctm::CTM_LEVEL {
namespace {

template <class T>
constexpr int64_t whole(int64_t count) {
  return (count + V<T> - 1) / V<T> * V<T>;
}

// Lanes of v at position `at` that are below n; the others are `rest`.
template <class T>
CTM_INLINE Vec<T> below(int64_t n, int64_t at, Vec<T> v, T rest = T(0)) {
  if (at + V<T> <= n) return v;
  for (int i = 0; i < V<T>; ++i) v[i] = at + i < n ? v[i] : rest;
  return v;
}

template <class T, class Body>
CTM_INLINE T sum_over(int64_t n, const Body& body) {
  Vec<T> sum{};
  for (int64_t at = 0; at < n; at += V<T>) sum += below<T>(n, at, body(at));
  return sum_lanes<T>(sum);
}

// x and y (n), both zero beyond n in the last vector.
template <class T>
CTM_INLINE T dot(int64_t n, const T* x, const T* y) {
  Vec<T> sum{};
  for (int64_t at = 0; at < n; at += V<T>) sum += load(x + at) * load(y + at);
  return sum_lanes<T>(sum);
}

// out = softmax(scale x), zero beyond n; NaN and infinity as in the definition.
template <class T>
CTM_INLINE void softmax(int64_t n, T scale, const T* x, T* out) {
  Vec<T> top = splat(-std::numeric_limits<T>::infinity()), sum{};
  for (int64_t at = 0; at < n; at += V<T>) {
    const Vec<T> v = below<T>(n, at, load(x + at) * scale, top[0]);
    store(out + at, v);
    top = v > top ? v : top;
  }
  T largest = top[0];
  for (int i = 1; i < V<T>; ++i) largest = top[i] > largest ? top[i] : largest;
  for (int64_t at = 0; at < n; at += V<T>) {
    const Vec<T> e = below<T>(n, at, exp(load(out + at) - largest));
    store(out + at, e);
    sum += e;
  }
  const T inverse = T(1) / sum_lanes<T>(sum);
  for (int64_t at = 0; at < n; at += V<T>) store(out + at, load(out + at) * inverse);
}

// The gradient of scale x from that of w = softmax(scale x); in place is allowed.
template <class T>
CTM_INLINE void softmax_backward(int64_t n, const T* w, const T* dw, T* dx) {
  const T mean = dot(n, w, dw);
  for (int64_t at = 0; at < n; at += V<T>) store(dx + at, load(w + at) * (load(dw + at) - mean));
}

// The gradient of `scale` from that of w = softmax(scale x) as softmax_backward gives it. The sum of dx is
// zero, so that x may be taken from its mean: less cancels.
template <class T>
CTM_INLINE T scale_gradient(int64_t n, const T* w, const T* dx, const T* x) {
  const T mean = sum_over<T>(n, [&](int64_t at) { return load(w + at) * load(x + at); });
  return sum_over<T>(n, [&](int64_t at) { return load(dx + at) * (load(x + at) - mean); });
}

// Continues the n values at x by `halo` to both sides, as if they lay on a circle.
template <class T>
CTM_INLINE void wrap(int64_t n, int64_t halo, T* x) {
  for (int64_t i = 0; i < halo; ++i) {
    x[-1 - i] = x[n - 1 - i % n];
    x[n + i] = x[i % n];
  }
}

template <class T>
struct Plane {  // shape of a memory
  int64_t slots, width, padded;
};

// N vectors of combine, at position `at`
template <bool ADD, int N, class T>
CTM_INLINE void combine_part(const Plane<T>& p, const T* x, const T* m, T offset, int64_t at, T* out) {
  Vec<T> sum[N] = {};
  for (int64_t w = 0; w < p.width; ++w) {
    const T scale = x[w] + offset;
    const T* row = m + w * p.padded + at;
    CTM_UNROLL for (int i = 0; i < N; ++i) sum[i] += scale * (load(row + i * V<T>) + offset);
  }
  CTM_UNROLL for (int i = 0; i < N; ++i) {
    const int64_t to = at + i * V<T>;
    store(out + to, ADD ? load(out + to) + below<T>(p.slots, to, sum[i]) : sum[i]);
  }
}

// out[n] = sum_w (x[w] + offset) (m[w][n] + offset), added to what is there where ADD
template <bool ADD, class T>
CTM_INLINE void combine(const Plane<T>& p, const T* x, const T* m, T offset, T* out) {
  int64_t at = 0;
  for (; at + 4 * V<T> <= p.padded; at += 4 * V<T>) combine_part<ADD, 4>(p, x, m, offset, at, out);
  for (; at < p.padded; at += V<T>) combine_part<ADD, 1>(p, x, m, offset, at, out);
}

// out[w] = sum_n x[n] (m[w][n] + offset); x is zero beyond N
template <class T>
CTM_INLINE void reduce(const Plane<T>& p, const T* x, const T* m, T offset, T* out) {
  for (int64_t w = 0; w < p.width; ++w) {
    Vec<T> sum{};
    for (int64_t at = 0; at < p.padded; at += V<T>)
      sum += load(x + at) * (load(m + w * p.padded + at) + offset);
    out[w] = sum_lanes<T>(sum);
  }
}

// m[w][n] += (x[w] + offset) y[n]; y is zero beyond N
template <class T>
CTM_INLINE void add_outer(const Plane<T>& p, const T* x, T offset, const T* y, T* m) {
  for (int64_t w = 0; w < p.width; ++w) {
    T* row = m + w * p.padded;
    const T scale = x[w] + offset;
    for (int64_t at = 0; at < p.padded; at += V<T>) store(row + at, load(row + at) + scale * load(y + at));
  }
}

// m[w][n] += x[n] (from[w][n] + offset); x is zero beyond N
template <class T>
CTM_INLINE void add_scaled(const Plane<T>& p, const T* x, const T* from, T offset, T* m) {
  for (int64_t i = 0; i < p.width * p.padded; i += p.padded)
    for (int64_t at = 0; at < p.padded; at += V<T>)
      store(m + i + at, load(m + i + at) + load(x + at) * (load(from + i + at) + offset));
}

// Copies a strided (N, W) memory to (W, P), zeros beyond N; null gives zeros.
template <class T>
void gather(const Plane<T>& p, const T* from, int64_t slot, int64_t column, T* m) {
  if (!from) return clear(m, p.width * p.padded);
  for (int64_t w = 0; w < p.width; ++w) {
    T* row = m + w * p.padded;
    if (slot == 1)
      copy(p.slots, from + w * column, row);
    else
      for (int64_t n = 0; n < p.slots; ++n) row[n] = from[n * slot + w * column];
    for (int64_t n = p.slots; n < p.padded; ++n) row[n] = T(0);
  }
}

// Copies `rows` padded rows to dense ones of n elements, or back, with zeros behind; null gives zeros.
template <class T>
void unpad(int64_t rows, int64_t n, const T* from, T* to) {
  for (int64_t i = 0; i < rows; ++i) copy(n, from + i * whole<T>(n), to + i * n);
}
template <class T>
void pad(int64_t rows, int64_t n, const T* from, T* to) {
  if (!from) return clear(to, rows * whole<T>(n));
  for (int64_t i = 0; i < rows; ++i) {
    T* row = to + i * whole<T>(n);
    copy(n, from + i * n, row);
    for (int64_t k = n; k < whole<T>(n); ++k) row[k] = T(0);
  }
}
// Adds dense rows to padded ones.
template <class T>
void add_rows(int64_t rows, int64_t n, const T* from, T* to) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t k = 0; k < n; ++k) to[i * whole<T>(n) + k] += from[i * n + k];
}

}  // namespace
}  // namespace ctm::CTM_LEVEL
