// Erasing and adding by all write heads of one sample; the shapes are those of ntm_slots.h.
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

  static int64_t scratch_size(int64_t count) { return 3 * count * V<T>; }

  // d is that of the memory after and becomes that of m before. Adds to dweights (count, P).
  void backward(const T* m, T* d, T* dweights, const Heads<T>& grads, T* scratch) const {
    T *before = scratch, *erased = before + count * V<T>, *added = erased + count * V<T>;
    for (int64_t w = 0; w < plane.width; ++w) {
      for (int64_t i = 0; i < 2 * count * V<T>; ++i) erased[i] = T(0);
      for (int64_t at = 0; at < plane.padded; at += V<T>)
        vector_backward(w, at, m, d, dweights, before, erased, added);
      for (int64_t v = 0; v < count; ++v) {
        grads[first + v].erase[w] = -sum_lanes<T>(load(erased + v * V<T>));
        grads[first + v].add[w] = sum_lanes<T>(load(added + v * V<T>));
      }
    }
  }

 private:
  // before[v]: product of what the heads before v keep. What all others keep is never found by division.
  CTM_INLINE void vector_backward(int64_t w, int64_t at, const T* m, T* d, T* dweights, T* before, T* erased,
                                  T* added) const {
    const int64_t i = w * plane.padded + at;
    const Vec<T> grad = load(d + i), grad_kept = grad * load(m + i);
    Vec<T> kept = splat(T(1));
    for (int64_t v = 0; v < count; ++v) {
      store(before + v * V<T>, kept);
      kept *= T(1) - load(weights + v * plane.padded + at) * heads[first + v].erase[w];
    }
    store(d + i, below<T>(plane.slots, at, grad * kept));
    Vec<T> behind = splat(T(1));
    for (int64_t v = count - 1; v >= 0; --v) {
      const T erase = heads[first + v].erase[w], add = heads[first + v].add[w];
      const Vec<T> weight = load(weights + v * plane.padded + at);
      const Vec<T> own = below<T>(plane.slots, at, grad_kept * load(before + v * V<T>) * behind);
      T* dweight = dweights + v * plane.padded + at;
      store(dweight, load(dweight) + below<T>(plane.slots, at, grad * add - own * erase));
      store(erased + v * V<T>, load(erased + v * V<T>) + own * weight);
      store(added + v * V<T>, load(added + v * V<T>) + grad * weight);
      behind *= T(1) - weight * erase;
    }
  }
};

}  // namespace
}  // namespace ctm::CTM_LEVEL
