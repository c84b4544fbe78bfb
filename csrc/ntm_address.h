// Addressing of one head and one sample, forward and backward; the shapes are those of slots.h.
#pragma once

#include "slots.h"

namespace ctm::CTM_LEVEL {
namespace {

template <class T>
struct Head {            // activated values, or their gradients
  T *key, *erase, *add;  // W
  T* shift;              // S
  T *beta, *gate, *gamma;
};

// How a cosine is kept finite: k.m / (length(k) length(m) + extra), with `offset` added to every element
// first.
template <class T>
struct Cosine {
  NtmCosine kind;
  T eps, offset, extra;

  Cosine(NtmCosine placement, T value)
      : kind(placement == NtmCosine::operands ? NtmCosine::clamp : placement),
        eps(placement == NtmCosine::operands ? T(1e-8) : value),
        offset(placement == NtmCosine::operands ? value : T(0)),
        extra(kind == NtmCosine::product || kind == NtmCosine::root_product ? value : T(0)) {}

  // The length from the sum of squares, and its derivative by an element divided by that element: 0 at zero.
  CTM_INLINE void length(Vec<T> squares, Vec<T>& length, Vec<T>& slope) const {
    const bool inside = kind == NtmCosine::root || kind == NtmCosine::root_product;
    const Vec<T> root = sqrt<T>(inside ? squares + eps : squares);
    slope = root == T(0) ? Vec<T>{} : T(1) / root;
    length = kind == NtmCosine::norm ? root + eps : root;
    if (kind != NtmCosine::clamp) return;
    length = root < eps ? splat(eps) : root;
    slope = root < eps ? Vec<T>{} : slope;
  }
};

template <class T>
struct Lengths {  // of all slots
  T *value, *slope;
};

template <class T>
CTM_INLINE void lengths(const Plane<T>& p, const Cosine<T>& cosine, const T* m, const Lengths<T>& to) {
  for (int64_t at = 0; at < p.padded; at += V<T>) {
    Vec<T> squares{}, length, slope;
    for (int64_t w = 0; w < p.width; ++w) {
      const Vec<T> v = load(m + w * p.padded + at) + cosine.offset;
      squares += v * v;
    }
    cosine.length(squares, length, slope);
    store(to.value + at, length);
    store(to.slope + at, slope);
  }
}

template <class T>
CTM_INLINE void key_length(const Plane<T>& p, const Cosine<T>& cosine, const T* key, T& length, T& slope) {
  T squares = 0;
  for (int64_t w = 0; w < p.width; ++w) squares += (key[w] + cosine.offset) * (key[w] + cosine.offset);
  Vec<T> lengths, slopes;
  cosine.length(splat(squares), lengths, slopes);
  length = lengths[0];
  slope = slopes[0];
}

// What addressing computes on its way; `gated` can be read S / 2 before its start and behind its end.
template <class T>
struct Stages {
  T *cosine, *content, *gated, *shifted, *logs;
};

template <class T>
struct AddressScratch {  // of a backward pass
  T *slots, *circle;     // P; as Stages::gated
};

template <class T>
struct Addressing {
  const Plane<T>& plane;
  const Cosine<T>& cosine;
  int64_t offsets;  // S
  const T* memory;
  Lengths<T> lengths;  // of the slots of `memory`
  Head<T> head;
  const T* previous;
  Stages<T> stages;

  int64_t halo() const { return offsets / 2; }

  void forward(T* weights) const {
    const int64_t n = plane.slots;
    const Vec<T> floor = splat(std::numeric_limits<T>::min());
    match();
    softmax(n, *head.beta, stages.cosine, stages.content);
    const T gate = *head.gate;
    for (int64_t at = 0; at < n; at += V<T>)
      store(stages.gated + at, gate * load(stages.content + at) + (T(1) - gate) * load(previous + at));
    wrap(n, halo(), stages.gated);
    for (int64_t at = 0; at < n; at += V<T>) {
      Vec<T> sum{};
      for (int64_t s = 0; s < offsets; ++s) sum += head.shift[s] * load(stages.gated + at + halo() - s);
      store(stages.shifted + at, sum);
      store(stages.logs + at, log<T>(sum < floor ? floor : sum));
    }
    softmax(n, *head.gamma, stages.logs, weights);
  }

  // Adds to dprevious (P), dmemory (W, P) and self (P), the factor of every slot in its own gradient; writes
  // the gradients of the head's addressing values.
  void backward(const T* weights, const T* dweights, const Head<T>& grad, T* dprevious, T* dmemory, T* self,
                const AddressScratch<T>& scratch) const {
    sharpen_backward(weights, dweights, grad, scratch.slots, scratch.circle);
    shift_backward(grad, scratch.circle, scratch.slots);
    gate_backward(grad, scratch.slots, dprevious);
    softmax_backward(plane.slots, stages.content, scratch.slots, scratch.slots);
    match_backward(grad, scratch.slots, dmemory, self);
  }

 private:
  void match() const {
    T length, slope;
    key_length(plane, cosine, head.key, length, slope);
    combine<false>(plane, head.key, memory, cosine.offset, stages.cosine);
    for (int64_t at = 0; at < plane.slots; at += V<T>) {
      const Vec<T> product = length * load(lengths.value + at) + cosine.extra;
      store(stages.cosine + at, load(stages.cosine + at) / product);
    }
  }

  void sharpen_backward(const T* weights, const T* dweights, const Head<T>& grad, T* dscaled,
                        T* dshifted) const {
    const int64_t n = plane.slots;
    softmax_backward(n, weights, dweights, dscaled);
    *grad.gamma = scale_gradient(n, weights, dscaled, stages.logs);
    const T gamma = *head.gamma;
    for (int64_t at = 0; at < n; at += V<T>) {
      const Vec<T> shifted = load(stages.shifted + at), slope = gamma * load(dscaled + at) / shifted;
      const Vec<T> d = shifted >= splat(std::numeric_limits<T>::min()) ? slope : Vec<T>{};
      store(dshifted + at, below<T>(n, at, d));
    }
    wrap(n, halo(), dshifted);
  }

  void shift_backward(const Head<T>& grad, const T* dshifted, T* dgated) const {
    const int64_t n = plane.slots;
    for (int64_t s = 0; s < offsets; ++s)
      grad.shift[s] = sum_over<T>(
          n, [&](int64_t at) { return load(dshifted + at) * load(stages.gated + at + halo() - s); });
    for (int64_t at = 0; at < n; at += V<T>) {
      Vec<T> sum{};
      for (int64_t s = 0; s < offsets; ++s) sum += head.shift[s] * load(dshifted + at + s - halo());
      store(dgated + at, below<T>(n, at, sum));
    }
  }

  // Leaves the gradient of the content in place of that of the gated weights.
  void gate_backward(const Head<T>& grad, T* dgated, T* dprevious) const {
    const T gate = *head.gate;
    Vec<T> sum{};
    for (int64_t at = 0; at < plane.slots; at += V<T>) {
      const Vec<T> d = load(dgated + at);
      sum += d * (load(stages.content + at) - load(previous + at));
      store(dprevious + at, load(dprevious + at) + (T(1) - gate) * d);
      store(dgated + at, gate * d);
    }
    *grad.gate = sum_lanes<T>(sum);
  }

  // d holds the gradient of beta cosine and is left as that of the products of key and slots.
  void match_backward(const Head<T>& grad, T* d, T* dmemory, T* self) const {
    const int64_t n = plane.slots;
    T length, slope;
    key_length(plane, cosine, head.key, length, slope);
    *grad.beta = scale_gradient(n, stages.content, d, stages.cosine);
    Vec<T> sum{};
    for (int64_t at = 0; at < n; at += V<T>) {
      const Vec<T> slots = load(lengths.value + at), product = length * slots + cosine.extra;
      const Vec<T> dot = below<T>(n, at, *head.beta * load(d + at) / product);
      const Vec<T> dproduct = below<T>(n, at, dot * load(stages.cosine + at));
      sum += dproduct * below<T>(n, at, slots);
      store(d + at, dot);
      store(self + at, load(self + at) - dproduct * length * below<T>(n, at, load(lengths.slope + at)));
    }
    reduce(plane, d, memory, cosine.offset, grad.key);
    const T own = -sum_lanes<T>(sum) * slope;
    for (int64_t w = 0; w < plane.width; ++w) grad.key[w] += own * (head.key[w] + cosine.offset);
    add_outer(plane, head.key, cosine.offset, d, dmemory);
  }
};

}  // namespace
}  // namespace ctm::CTM_LEVEL
