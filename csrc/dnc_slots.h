// Sums, blocking and transpositions of the DNC's kernels, on the vectors over slots of slots.h.
#pragma once

#include "slots.h"

namespace ctm::CTM_LEVEL {

// Calls body(std::integral_constant<int, C>{}, first) for pieces of C = 4, 2 or 1 that make up [0, n).
template <class Body>
CTM_INLINE void by_fours(int64_t n, const Body& body) {
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) body(std::integral_constant<int, 4>{}, i);
  if (i + 2 <= n) {
    body(std::integral_constant<int, 2>{}, i);
    i += 2;
  }
  if (i < n) body(std::integral_constant<int, 1>{}, i);
}

template <class T>
CTM_INLINE void add(int64_t n, const T* from, T* to) {
  for (int64_t i = 0; i < n; ++i) to[i] += from[i];
}

// out[c] = the sum of the lanes of x[c].
template <class T, int C>
CTM_INLINE void sums(Vec<T> (&x)[C], T* out) {
  if constexpr (C == 4 && lanes<T> >= 4) {
    exchange<T, 1>(x[0], x[1]);
    exchange<T, 1>(x[2], x[3]);
    Vec<T> low = x[0] + x[1], high = x[2] + x[3];
    exchange<T, 2>(low, high);
    T quads[lanes<T>];
    store(quads, low + high);
    for (int c = 0; c < 4; ++c) {
      T sum = quads[c];
      for (int quad = 4; quad < lanes<T>; quad += 4) sum += quads[quad + c];
      out[c] = sum;
    }
  } else {
    for (int c = 0; c < C; ++c) out[c] = sum_lanes<T>(x[c]);
  }
}

// to = (1 - sum_n w[n]) p + w: how much every slot was the last that was written. `to` may be p.
template <class T>
CTM_INLINE void next_precedence(int64_t slots, const T* w, const T* p, T* to) {
  const T keep = T(1) - sum_over<T>(slots, [&](int64_t at) { return load(w + at); });
  for (int64_t v = 0; v < slots; v += V<T>) store(to + v, keep * load(p + v) + load(w + v));
}

// d, the gradient of the next precedence, becomes that of p; dw is added to.
template <class T>
CTM_INLINE void precedence_backward(int64_t slots, const T* w, const T* p, T* d, T* dw) {
  const T keep = T(1) - sum_over<T>(slots, [&](int64_t at) { return load(w + at); });
  const T lost = dot(slots, d, p);
  for (int64_t v = 0; v < slots; v += V<T>) {
    const Vec<T> g = load(d + v);
    store(dw + v, load(dw + v) + (g - lost));
    store(d + v, keep * g);
  }
}

// to[n] += sum_r x[r * stride] rows[r][n]
template <class T>
CTM_INLINE void add_combined(int64_t pad, int64_t count, const T* x, int64_t stride, const T* rows, T* to) {
  for (int64_t v = 0; v < pad; v += lanes<T>) {
    Vec<T> sum = load(to + v);
    for (int64_t r = 0; r < count; ++r) sum += x[r * stride] * load(rows + r * pad + v);
    store(to + v, sum);
  }
}

// to[j][i] = from[i][j] for rows of `from` and `to` that lie a stride apart.
template <class T>
inline void transposed(int64_t rows, int64_t columns, const T* from, int64_t from_stride, T* to,
                       int64_t to_stride) {
  for (int64_t i = 0; i < rows; i += V<T>)
    for (int64_t j = 0; j < columns; j += V<T>) {
      const int height = part<T>(rows, i), width = part<T>(columns, j);
      Vec<T> square[V<T>] = {};
      for (int r = 0; r < height; ++r) square[r] = load_part(from + (i + r) * from_stride + j, width);
      transpose<T>(square);
      for (int c = 0; c < width; ++c) store_part(to + (j + c) * to_stride + i, square[c], height);
    }
}

// A dense memory (N, W) as (W, P), and back.
template <class T>
inline void slots_to_lanes(const Plane<T>& p, const T* from, T* to) {
  transposed(p.slots, p.width, from, p.width, to, p.padded);
  for (int64_t w = 0; w < p.width; ++w) clear(to + w * p.padded + p.slots, p.padded - p.slots);
}
template <class T>
inline void lanes_to_slots(const Plane<T>& p, const T* from, T* to) {
  transposed(p.width, p.slots, from, p.padded, to, p.width);
}

}  // namespace ctm::CTM_LEVEL
