#include "attend.h"

#include "attend_head.h"
#include "parallel.h"

namespace ctm::CTM_LEVEL {
namespace {

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
