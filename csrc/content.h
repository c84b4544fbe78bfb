// Content addressing: softmax over the slots of strength times cosine, with eps inside both roots.
//
//   cosine[n] = key . memory[n] / (sqrt(|key|^2 + eps) sqrt(|memory[n]|^2 + eps))
//
// The memory lies as W vectors over the slots (slots.h). The backward is finite at zero keys and slots.
#pragma once

#include <limits>

#include "slots.h"

namespace ctm::CTM_LEVEL {

template <class T>
CTM_INLINE Vec<T> square_root(Vec<T> x) {
  for (int i = 0; i < lanes<T>; ++i) x[i] = std::sqrt(x[i]);
  return x;
}

// norms[n] = sqrt(|memory[n]|^2 + eps)
template <class T>
void slot_norms(int64_t pad, int64_t width, const T* memory, T eps, T* norms) {
  for (int64_t v = 0; v < pad; v += lanes<T>) {
    Vec<T> sum = {};
    for (int64_t w = 0; w < width; ++w) {
      const Vec<T> x = load(memory + w * pad + v);
      sum += x * x;
    }
    store(norms + v, square_root<T>(sum + eps));
  }
}

// In place over N slots; zero beyond. An infinite or NaN score gives NaN weights.
template <class T>
void softmax(int64_t slots, T* x) {
  const int64_t pad = padded<T>(slots);
  const T lowest = -std::numeric_limits<T>::infinity();
  for (int64_t n = slots; n < pad; ++n) x[n] = lowest;
  Vec<T> tops = load(x);
  for (int64_t v = lanes<T>; v < pad; v += lanes<T>) {
    const Vec<T> at = load(x + v);
    tops = at > tops ? at : tops;
  }
  T top = tops[0];
  for (int i = 1; i < lanes<T>; ++i) top = tops[i] > top ? tops[i] : top;
  Vec<T> sum = {};
  for (int64_t v = 0; v < pad; v += lanes<T>) {
    const Vec<T> e = exp(load(x + v) - top);
    store(x + v, e);
    sum += e;
  }
  const T scale = T(1) / sum_lanes<T>(sum);
  for (int64_t v = 0; v < pad; v += lanes<T>) store(x + v, load(x + v) * scale);
  clear(x + slots, pad - slots);
}

// One key's look at a memory.
template <class T>
struct Content {
  int64_t slots, width;
  const T *memory, *norms;  // W vectors over the slots; their norms
  T eps;

  int64_t pad() const { return padded<T>(slots); }

  // cosine[n] of `key`; returns the norm of the key.
  T cosines(const T* key, T* cosine) const {
    T square = 0;
    for (int64_t w = 0; w < width; ++w) square += key[w] * key[w];
    const T norm = std::sqrt(square + eps);
    for (int64_t v = 0; v < pad(); v += lanes<T>) {
      Vec<T> sum = {};
      for (int64_t w = 0; w < width; ++w) sum += key[w] * load(memory + w * pad() + v);
      store(cosine + v, sum / (norm * load(norms + v)));
    }
    return norm;
  }
  // `out` may be `cosine`.
  void weights(const T* cosine, T strength, T* out) const {
    for (int64_t v = 0; v < pad(); v += lanes<T>) store(out + v, load(cosine + v) * strength);
    softmax(slots, out);
  }

  // From `gradient`, that of the weights: dkey (W) is written, dmemory is added to; returns that of the
  // strength. norm, cosine and weight are what the functions above gave; cosine and gradient are destroyed.
  T backward(const T* key, T strength, T norm, const T* weight, T* cosine, T* gradient, T* dkey,
             T* dmemory) const {
    T *direct = cosine, *radial = gradient;
    const T mean = dot(pad(), weight, gradient);
    Vec<T> dstrength = {}, along = {};
    for (int64_t v = 0; v < pad(); v += lanes<T>) {
      const Vec<T> c = load(cosine + v), inverse = T(1) / load(norms + v);
      const Vec<T> score = load(weight + v) * (load(gradient + v) - mean);
      const Vec<T> dcosine = strength * score;
      dstrength += score * c;
      along += dcosine * c;
      store(direct + v, dcosine * inverse / norm);
      store(radial + v, dcosine * c * inverse * inverse);
    }
    products(pad(), width, direct, memory, dkey);
    const T shrink = sum_lanes<T>(along) / (norm * norm);
    for (int64_t w = 0; w < width; ++w) {
      const T* row = memory + w * pad();
      T* to = dmemory + w * pad();
      for (int64_t v = 0; v < pad(); v += lanes<T>)
        store(to + v, load(to + v) + (key[w] * load(direct + v) - load(row + v) * load(radial + v)));
      dkey[w] -= shrink * key[w];
    }
    return sum_lanes<T>(dstrength);
  }
};

}  // namespace ctm::CTM_LEVEL
