// Content addressing: softmax over the slots of strength times cosine, with eps inside both roots.
//
//   cosine[n] = key . memory[n] / (sqrt(|key|^2 + eps) sqrt(|memory[n]|^2 + eps))
//
// The backward is finite at zero keys and slots.
#pragma once

#include "slots.h"

namespace ctm::CTM_LEVEL {

// norms[n] = sqrt(|memory[n]|^2 + eps)
template <class T>
void slot_norms(const Plane<T>& p, const T* memory, T eps, T* norms) {
  for (int64_t at = 0; at < p.padded; at += lanes<T>) {
    Vec<T> sum = {};
    for (int64_t w = 0; w < p.width; ++w) {
      const Vec<T> x = load(memory + w * p.padded + at);
      sum += x * x;
    }
    store(norms + at, sqrt<T>(sum + eps));
  }
}

// One key's look at a memory (W, P).
template <class T>
struct Content {
  const Plane<T>& plane;
  const T *memory, *norms;  // norms of the slots
  T eps;

  // cosine[n] of `key`; returns the norm of the key.
  T cosines(const T* key, T* cosine) const {
    T square = 0;
    for (int64_t w = 0; w < plane.width; ++w) square += key[w] * key[w];
    const T norm = std::sqrt(square + eps);
    combine<false>(plane, key, memory, T(0), cosine);
    for (int64_t at = 0; at < plane.padded; at += lanes<T>)
      store(cosine + at, load(cosine + at) / (norm * load(norms + at)));
    return norm;
  }
  // `out` may be `cosine`.
  void weights(const T* cosine, T strength, T* out) const { softmax(plane.slots, strength, cosine, out); }

  // From `gradient`, that of the weights: dkey (W) is written, dmemory is added to; returns that of the
  // strength. norm, cosine and weight are what the functions above gave; cosine and gradient are destroyed.
  T backward(const T* key, T strength, T norm, const T* weight, T* cosine, T* gradient, T* dkey,
             T* dmemory) const {
    softmax_backward(plane.slots, weight, gradient, gradient);
    const T dstrength = scale_gradient(plane.slots, weight, gradient, cosine);
    T *direct = gradient, *radial = cosine;  // factors of the key and of the slot itself
    Vec<T> along = {};
    for (int64_t at = 0; at < plane.padded; at += lanes<T>) {
      const Vec<T> c = load(cosine + at), slot = load(norms + at);
      const Vec<T> dcosine = strength * load(gradient + at);
      along += dcosine * c;
      store(direct + at, dcosine / (norm * slot));
      store(radial + at, -dcosine * c / (slot * slot));
    }
    reduce(plane, direct, memory, T(0), dkey);
    const T shrink = sum_lanes<T>(along) / (norm * norm);
    for (int64_t w = 0; w < plane.width; ++w) dkey[w] -= shrink * key[w];
    add_outer(plane, key, T(0), direct, dmemory);
    add_scaled(plane, radial, memory, T(0), dmemory);
    return dstrength;
  }
};

}  // namespace ctm::CTM_LEVEL
