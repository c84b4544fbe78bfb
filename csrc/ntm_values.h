// The activated values of all heads of one sample, from an interface vector and back.
#pragma once

#include "ntm_address.h"

namespace ctm::CTM_LEVEL {
namespace {

template <class T>
CTM_INLINE Vec<T> activated(NtmActivation kind, Vec<T> x) {
  if (kind == NtmActivation::linear) return x;
  if (kind == NtmActivation::sigmoid) return sigmoid(x);
  const Vec<T> t = exp(x < T(0) ? x + x : -(x + x)), y = (T(1) - t) / (T(1) + t);
  return x < T(0) ? -y : y;
}

// n elements of x to y, which has room for whole vectors.
template <class T>
void activate(NtmActivation kind, int64_t n, const T* x, T* y) {
  for (int64_t at = 0; at < n; at += V<T>)
    store(y + at, activated<T>(kind, load_part(x + at, part<T>(n, at))));
}

// dx from dy and y = activated(x)
template <class T>
void activate_backward(NtmActivation kind, int64_t n, const T* y, const T* dy, T* dx) {
  for (int64_t i = 0; i < n; ++i) {
    const T slope = kind == NtmActivation::tanh ? T(1) - y[i] * y[i] : y[i] * (T(1) - y[i]);
    dx[i] = kind == NtmActivation::linear ? dy[i] : dy[i] * slope;
  }
}

template <class T>
struct Heads {  // one block each; every array has room for whole vectors
  T* data;
  int64_t width, shift;

  static int64_t size(const NtmSizes& n) { return n.heads() * Heads{nullptr, n.width, n.shift}.block(); }
  int64_t block() const { return 3 * whole<T>(width) + whole<T>(shift) + V<T> * 2; }
  CTM_INLINE Head<T> operator[](int64_t h) const {
    const int64_t w = whole<T>(width);
    T *p = data + h * block(), *numbers = p + 3 * w + whole<T>(shift);
    return {p, p + w, p + 2 * w, p + 3 * w, numbers, numbers + 1, numbers + 2};
  }
};

template <class T>
struct Values {
  const NtmSizes& n;
  const NtmVariant& variant;

  NtmActivation raw(NtmActivation kind) const { return variant.raw ? kind : NtmActivation::linear; }
  int64_t length(int64_t head) const { return n.width + n.shift + 3 + (head < n.read ? 0 : 2 * n.width); }

  void forward(const T* row, const Heads<T>& heads) const {
    for (int64_t h = 0; h < n.heads(); row += length(h++)) {
      const Head<T> to = heads[h];
      const T* rest = row + n.width;
      activate(raw(variant.key), n.width, row, to.key);
      *to.beta = variant.raw ? softplus(rest[0]) + T(variant.one_plus) : rest[0];
      *to.gate = variant.raw ? logistic(rest[1]) : rest[1];
      copy(n.shift, rest + 2, to.shift);
      if (variant.raw) softmax(n.shift, T(1), to.shift, to.shift);
      rest += 2 + n.shift;
      *to.gamma = variant.raw ? T(1) + softplus(rest[0]) : rest[0];
      if (h < n.read) continue;
      activate(raw(NtmActivation::sigmoid), n.width, rest + 1, to.erase);
      activate(raw(variant.add), n.width, rest + 1 + n.width, to.add);
    }
  }

  void backward(const T* row, const Heads<T>& heads, const Heads<T>& grads, T* drow) const {
    for (int64_t h = 0; h < n.heads(); drow += length(h), row += length(h++)) {
      const Head<T> value = heads[h], grad = grads[h];
      const T* rest = row + n.width;
      T* drest = drow + n.width;
      activate_backward(raw(variant.key), n.width, value.key, grad.key, drow);
      drest[0] = variant.raw ? *grad.beta * logistic(rest[0]) : *grad.beta;
      activate_backward(raw(NtmActivation::sigmoid), 1, value.gate, grad.gate, drest + 1);
      shift_backward(value.shift, grad.shift, drest + 2);
      rest += 2 + n.shift, drest += 2 + n.shift;
      drest[0] = variant.raw ? *grad.gamma * logistic(rest[0]) : *grad.gamma;
      if (h < n.read) continue;
      activate_backward(raw(NtmActivation::sigmoid), n.width, value.erase, grad.erase, drest + 1);
      activate_backward(raw(variant.add), n.width, value.add, grad.add, drest + 1 + n.width);
    }
  }

 private:
  void shift_backward(const T* value, const T* grad, T* to) const {
    T mean = 0;
    for (int64_t s = 0; variant.raw && s < n.shift; ++s) mean += value[s] * grad[s];
    for (int64_t s = 0; s < n.shift; ++s) to[s] = variant.raw ? value[s] * (grad[s] - mean) : grad[s];
  }
};

}  // namespace
}  // namespace ctm::CTM_LEVEL
