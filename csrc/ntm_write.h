// Erasing and adding by all write heads of one sample; the shapes are those of slots.h.
#pragma once

#include "ntm_values.h"

namespace ctm::CTM_LEVEL {
namespace {

template <class T>
struct Writers {
  const Plane<T>& plane;
  int64_t first, count;  // the write heads among `heads`
  Heads<T> heads;
  const T* weights;  // (count, P)

  // The two memories may be the same.
  void forward(const T* m, T* after) const {
    for (int64_t w = 0; w < plane.width; ++w)
      for (int64_t at = 0; at < plane.padded; at += V<T>) {
        Vec<T> kept = splat(T(1)), added{};
        for (int64_t v = 0; v < count; ++v) {
          const Vec<T> weight = load(weights + v * plane.padded + at);
          kept *= T(1) - weight * heads[first + v].erase[w];
          added += weight * heads[first + v].add[w];
        }
        const int64_t i = w * plane.padded + at;
        store(after + i, below<T>(plane.slots, at, load(m + i) * kept + added));
      }
  }

  // d is that of the memory after and becomes that of m before. Adds to dweights (count, P).
  void backward(const T* m, T* d, T* dweights, const Heads<T>& grads) const {
    for (int64_t w = 0; w < plane.width; ++w)
      for (int64_t v = 0; v < count; ++v) {
        Vec<T> erased{}, added{};
        const Head<T> head = heads[first + v];
        const T erase = head.erase[w], add = head.add[w];
        for (int64_t at = 0; at < plane.padded; at += V<T>) {
          const int64_t i = w * plane.padded + at, slot = v * plane.padded + at;
          const Vec<T> grad = load(d + i), weight = load(weights + slot), others = kept_by_others(v, w, at);
          const Vec<T> own = below<T>(plane.slots, at, grad * load(m + i) * others);
          store(dweights + slot, load(dweights + slot) + below<T>(plane.slots, at, grad * add - own * erase));
          erased += own * weight;
          added += grad * weight;
          if (v + 1 == count)
            store(d + i, below<T>(plane.slots, at, grad * (others * (T(1) - weight * erase))));
        }
        grads[first + v].erase[w] = -sum_lanes<T>(erased);
        grads[first + v].add[w] = sum_lanes<T>(added);
      }
  }

 private:
  // Multiplied anew: a division by what head v keeps could be one by zero.
  CTM_INLINE Vec<T> kept_by_others(int64_t v, int64_t w, int64_t at) const {
    Vec<T> kept = splat(T(1));
    for (int64_t o = 0; o < count; ++o)
      if (o != v) kept *= T(1) - load(weights + o * plane.padded + at) * heads[first + o].erase[w];
    return kept;
  }
};

}  // namespace
}  // namespace ctm::CTM_LEVEL
