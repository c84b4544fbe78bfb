// One step of all heads on the memory of one sample, forward and backward (see ntm.h).
#pragma once

#include <algorithm>

#include "ntm_write.h"

namespace ctm::CTM_LEVEL {
namespace {

template <class T>
struct Record {         // a step of one sample
  T *memory, *weights;  // before it: (W, P), (H, P)
  Lengths<T> lengths;   // of the slots of that memory
  Heads<T> heads;
  T* stages;
};

template <class T>
struct Gradients {  // of one sample
  T *memory, *weights, *previous;
  Heads<T> heads;
  T *self, *slots, *circle;
};

template <class T>
struct Machine {  // what all samples share
  const NtmSizes& n;
  const NtmVariant& variant;
  Plane<T> plane{n.slots, n.width, whole<T>(n.slots)};
  Cosine<T> cosine{variant.cosine, static_cast<T>(variant.eps)};
  Values<T> values{n, variant};

  int64_t halo() const { return whole<T>(n.shift / 2); }
  int64_t circle() const { return plane.padded + 2 * halo(); }
  int64_t row(int64_t h) const { return h * plane.padded; }
  int64_t previous(int64_t h) const { return row(variant.shared ? n.heads() - 1 : h); }

  Record<T> record(Arena<T>& from) const {
    T *memory = from.take(row(n.width)), *weights = from.take(row(n.heads()));
    const Lengths<T> lengths{from.take(plane.padded), from.take(plane.padded)};
    const Heads<T> heads{from.take(Heads<T>::size(n)), n.width, n.shift};
    return {memory, weights, lengths, heads, from.take(n.heads() * (4 * plane.padded + circle()))};
  }
  Gradients<T> gradients(Arena<T>& from) const {
    T *memory = from.take(row(n.width)), *weights = from.take(row(n.heads()));
    T* previous = from.take(row(n.heads()));
    const Heads<T> heads{from.take(Heads<T>::size(n)), n.width, n.shift};
    T *self = from.take(plane.padded), *slots = from.take(plane.padded), *around = from.take(circle());
    return {memory, weights, previous, heads, self, slots, around + (around ? halo() : 0)};
  }

  // Head h on the memory of `where`.
  CTM_INLINE Addressing<T> addressing(const Record<T>& at, const Record<T>& where, int64_t h) const {
    const int64_t size = plane.padded;
    T* stage = at.stages + h * (4 * size + circle());
    const Stages<T> stages{stage, stage + size, stage + 4 * size + halo(), stage + 2 * size,
                           stage + 3 * size};
    return {plane, cosine, n.shift, where.memory, where.lengths, at.heads[h], at.weights + previous(h),
            stages};
  }
  void address(const Record<T>& at, const Record<T>& where, int64_t first, int64_t last, T* weights) const {
    for (int64_t h = first; h < last; ++h) addressing(at, where, h).forward(weights + row(h));
  }
  Writers<T> writers(const Heads<T>& heads, const T* weights) const {
    return {plane, n.read, n.write, heads, weights + row(n.read)};
  }
  void start(const Record<T>& to, const NtmMemory<const T>& memory, const NtmWeights<const T>& before,
             int64_t b) const {
    gather(plane, memory.data + b * memory.batch, memory.slot, memory.column, to.memory);
    lengths(plane, cosine, to.memory, to.lengths);
    pad(n.read, n.slots, before.read + b * n.read * n.slots, to.weights);
    pad(n.write, n.slots, before.write + b * n.write * n.slots, to.weights + row(n.read));
  }

  // One step from `at` to `next`; reads (R, W) may be null.
  void step(const T* vector, const Record<T>& at, const Record<T>& next, T* reads) const {
    const bool writes_first = variant.order == NtmOrder::write_read;
    values.forward(vector, at.heads);
    address(at, at, writes_first ? n.read : 0, n.heads(), next.weights);
    if (variant.order == NtmOrder::address_only) return;
    writers(at.heads, next.weights).forward(at.memory, next.memory);
    lengths(plane, cosine, next.memory, next.lengths);
    if (writes_first) address(at, next, 0, n.read, next.weights);
    const T* from = variant.order == NtmOrder::previous_read ? at.weights : next.weights;
    for (int64_t h = 0; reads && h < n.read; ++h)
      reduce(plane, from + row(h), writes_first ? next.memory : at.memory, T(0), reads + h * n.width);
  }

  void read_backward(const T* memory, const T* weights, const T* dreads, T* dmemory, T* dweights) const {
    for (int64_t h = 0; dreads && h < n.read; ++h) {
      const T* d = dreads + h * n.width;
      combine<true>(plane, d, memory, T(0), dweights + row(h));
      add_outer(plane, d, T(0), weights + row(h), dmemory);
    }
  }
  void address_backward(const Record<T>& at, const Record<T>& where, int64_t first, int64_t last,
                        const T* weights, const Gradients<T>& d) const {
    std::fill_n(d.self, plane.padded, T(0));
    for (int64_t h = first; h < last; ++h)
      addressing(at, where, h)
          .backward(weights + row(h), d.weights + row(h), d.heads[h], d.previous + previous(h), d.memory,
                    d.self, {d.slots, d.circle});
    add_scaled(plane, d.self, where.memory, cosine.offset, d.memory);
  }
  // d.memory and d.weights hold the gradients after the step and are left as those before it.
  void step_backward(const T* vector, const Record<T>& at, const Record<T>& next, const T* dreads, T* dvector,
                     Gradients<T>& d) const {
    const bool writes_first = variant.order == NtmOrder::write_read;
    const bool reads_first = variant.order == NtmOrder::previous_read;
    std::fill_n(d.previous, row(n.heads()), T(0));
    if (writes_first) {
      read_backward(next.memory, next.weights, dreads, d.memory, d.weights);
      address_backward(at, next, 0, n.read, next.weights, d);
    }
    if (variant.order != NtmOrder::address_only)
      writers(at.heads, next.weights).backward(at.memory, d.memory, d.weights + row(n.read), d.heads);
    if (!writes_first)
      read_backward(at.memory, reads_first ? at.weights : next.weights, dreads, d.memory,
                    reads_first ? d.previous : d.weights);
    address_backward(at, at, writes_first ? n.read : 0, n.heads(), next.weights, d);
    values.backward(vector, at.heads, d.heads, dvector);
    std::swap(d.weights, d.previous);
  }
};

}  // namespace
}  // namespace ctm::CTM_LEVEL
