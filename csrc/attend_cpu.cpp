#include "attend.h"

#include "parallel.h"
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
  T top = w[0];
  for (int64_t l = 1; l < tokens; ++l) top = w[l] > top ? w[l] : top;
  T total = 0;
  int64_t l = 0;
  for (; l + V<T> <= tokens; l += V<T>) {
    const Vec<T> e = exp(load(w + l) - top);
    store(w + l, e);
    total += sum_lanes<T>(e);
  }
  if (l < tokens) {
    const int left = static_cast<int>(tokens - l);
    const Vec<T> e = exp(load_part(w + l, left) - top);
    for (int i = 0; i < left; ++i) total += w[l + i] = e[i];
  }
  for (l = 0; l < tokens; ++l) w[l] /= total;
}

struct Mask {
  Dropout drop;
  uint32_t key;

  Mask(const DropoutRows& d, int64_t b)
      : drop(d.p, d.seed), key(row_key(d.seed, static_cast<uint64_t>(d.first_row + b))) {}
  // Writes x * mask for one head; in == out is allowed.
  template <class T>
  void apply(int64_t tokens, int64_t head, const T* in, T* out) const {
    for (int64_t l = 0; l < tokens; l += V<T>) {
      const int n = part<T>(tokens, l);
      const Vec<T> keep = keep_mask<T>(drop, key, static_cast<uint32_t>(head * tokens + l));
      store_part(out + l, load_part(in + l, n) * keep, n);
    }
  }
};

template <class T>
void forward(const AttendSizes& n, const DropoutRows& drop, const T* q, int64_t q_row, const T* keys,
             const T* values, T* weights, T* o, int64_t o_row, int threads) {
  const int64_t plane = n.width * n.tokens;
  parallel_for(threads, n.batch, [&](int64_t b) {
    const Mask mask(drop, b);
    for (int64_t head = 0; head < n.heads; ++head) {
      const int64_t at = b * n.heads + head;
      T* w = weights + at * n.tokens;
      T* out = o + b * o_row + head * n.width;
      combine(n.width, n.tokens, q + b * q_row + head * n.width, keys + at * plane, w);
      softmax(n.tokens, w);
      if (mask.drop.on()) mask.apply(n.tokens, head, w, w);
      dots(n.width, n.tokens, w, values + at * plane, out);
    }
  });
}

template <class T>
void backward(const AttendSizes& n, const DropoutRows& drop, const T* q, int64_t q_row, const T* keys,
              const T* values, const T* grad, int64_t grad_row, T* dropped, T* weights, T* scores, T* dq,
              int64_t dq_row, int threads) {
  const int64_t plane = n.width * n.tokens;
  parallel_for(threads, n.batch, [&](int64_t b) {
    const Mask mask(drop, b);
    for (int64_t head = 0; head < n.heads; ++head) {
      const int64_t at = b * n.heads + head, column = head * n.width;
      T *w = weights + at * n.tokens, *ds = scores + at * n.tokens;
      combine(n.width, n.tokens, q + b * q_row + column, keys + at * plane, w);
      softmax(n.tokens, w);
      combine(n.width, n.tokens, grad + b * grad_row + column, values + at * plane, ds);
      if (mask.drop.on()) {
        mask.apply(n.tokens, head, w, dropped + at * n.tokens);
        mask.apply(n.tokens, head, ds, ds);
      }
      T mean = 0;
      for (int64_t l = 0; l < n.tokens; ++l) mean += w[l] * ds[l];
      for (int64_t l = 0; l < n.tokens; ++l) ds[l] = w[l] * (ds[l] - mean);
      dots(n.width, n.tokens, ds, keys + at * plane, dq + b * dq_row + column);
    }
  });
}

template <class T>
constexpr AttendTable<T> table = {forward<T>, backward<T>};

}  // namespace

extern const AttendKernels attend_kernels = {table<float>, table<double>};

}  // namespace ctm::CTM_LEVEL
