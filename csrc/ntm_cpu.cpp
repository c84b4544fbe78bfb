#include "ntm.h"

#include <algorithm>

#include "ntm_write.h"
#include "parallel.h"

// Samples are independent, and the memory of one fits the cache: every thread takes some samples and runs all
// their steps. The backward runs forward again and records each step, so nothing is kept between the two
// passes.

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

// Runs body(sample, its thread's buffer of `size` elements) for all samples.
template <class T, class Body>
void over_samples(const NtmSizes& n, int64_t size, int threads, const Body& body) {
  const bool small = n.steps * n.batch * n.slots * (n.width + 16) * n.heads() < (1 << 15);
  parallel_for<T>(small ? 1 : threads, n.batch, size, body);
}

// Whether `weights` holds those of step t.
bool holds(const NtmSizes& n, const void* weights, int64_t step, int64_t t) {
  return weights && (step || t == n.steps - 1);
}

template <class T>
void forward(const NtmSizes& n, const NtmVariant& variant, NtmMemory<const T> memory,
             NtmInterface<T> interface, NtmWeights<const T> before, T* reads, T* after, NtmWeights<T> weights,
             int threads) {
  const Machine<T> machine{n, variant};
  const int64_t of_read = n.read * n.slots, of_write = n.write * n.slots;
  Arena<T> sizes;
  machine.record(sizes);
  over_samples<T>(n, 2 * sizes.used, threads, [&](int64_t b, T* buffer) {
    Arena<T> pieces{buffer};
    Record<T> at = machine.record(pieces), next = machine.record(pieces);
    machine.start(at, memory, before, b);
    for (int64_t t = 0; t < n.steps; ++t) {
      T* out = reads ? reads + (t * n.batch + b) * n.read * n.width : nullptr;
      machine.step(interface.data + t * interface.step + b * interface.batch, at, next, out);
      std::swap(at, next);
      if (holds(n, weights.read, weights.read_step, t))
        unpad(n.read, n.slots, at.weights, weights.read + t * weights.read_step + b * of_read);
      if (holds(n, weights.write, weights.write_step, t))
        unpad(n.write, n.slots, at.weights + machine.row(n.read),
              weights.write + t * weights.write_step + b * of_write);
    }
    if (after) unpad(n.width, n.slots, at.memory, after + b * n.width * n.slots);
  });
}

template <class T>
void backward(const NtmSizes& n, const NtmVariant& variant, NtmMemory<const T> memory,
              NtmInterface<T> interface, NtmWeights<const T> before, const T* dreads,
              NtmMemory<const T> dafter, NtmWeights<const T> dweights, T* dbefore, T* dinterface,
              NtmWeights<T> dprevious, int threads) {
  const Machine<T> machine{n, variant};
  const int64_t of_read = n.read * n.slots, of_write = n.write * n.slots, writes = machine.row(n.read);
  Arena<T> record, gradients;
  machine.record(record);
  machine.gradients(gradients);
  over_samples<T>(n, (n.steps + 1) * record.used + gradients.used, threads, [&](int64_t b, T* buffer) {
    Arena<T> pieces{buffer};
    Gradients<T> d = machine.gradients(pieces);
    T* records = buffer + pieces.used;
    const auto at = [&](int64_t t) {
      Arena<T> piece{records + t * record.used};
      return machine.record(piece);
    };
    const auto vector = [&](int64_t t) { return interface.data + t * interface.step + b * interface.batch; };
    machine.start(at(0), memory, before, b);
    for (int64_t t = 0; t < n.steps; ++t) machine.step(vector(t), at(t), at(t + 1), nullptr);
    const T* last = dafter.data ? dafter.data + b * dafter.batch : nullptr;
    gather(machine.plane, last, dafter.slot, dafter.column, d.memory);
    std::fill_n(d.weights, machine.row(n.heads()), T(0));
    for (int64_t t = n.steps - 1; t >= 0; --t) {
      const int64_t i = t * n.batch + b;
      if (holds(n, dweights.read, dweights.read_step, t))
        add_rows(n.read, n.slots, dweights.read + t * dweights.read_step + b * of_read, d.weights);
      if (holds(n, dweights.write, dweights.write_step, t))
        add_rows(n.write, n.slots, dweights.write + t * dweights.write_step + b * of_write,
                 d.weights + writes);
      machine.step_backward(vector(t), at(t), at(t + 1), dreads ? dreads + i * n.read * n.width : nullptr,
                            dinterface + i * n.interface(), d);
    }
    unpad(n.width, n.slots, d.memory, dbefore + b * n.width * n.slots);
    unpad(n.read, n.slots, d.weights, dprevious.read + b * of_read);
    unpad(n.write, n.slots, d.weights + writes, dprevious.write + b * of_write);
  });
}

const NtmVariant kPlain{};  // of the ops that only read or write

template <class T>
void read(const NtmSizes& n, NtmMemory<const T> memory, const T* weights, T* reads, int threads) {
  const Machine<T> machine{n, kPlain};
  const int64_t plane = machine.row(n.width), all = machine.row(n.read);
  over_samples<T>(n, plane + all, threads, [&](int64_t b, T* buffer) {
    T *m = buffer, *w = buffer + plane;
    gather(machine.plane, memory.data + b * memory.batch, memory.slot, memory.column, m);
    pad(n.read, n.slots, weights + b * n.read * n.slots, w);
    for (int64_t h = 0; h < n.read; ++h)
      reduce(machine.plane, w + machine.row(h), m, T(0), reads + (b * n.read + h) * n.width);
  });
}

template <class T>
void read_backward(const NtmSizes& n, NtmMemory<const T> memory, const T* weights, const T* dreads,
                   T* dmemory, T* dweights, int threads) {
  const Machine<T> machine{n, kPlain};
  const int64_t plane = machine.row(n.width), all = machine.row(n.read);
  over_samples<T>(n, 2 * (plane + all), threads, [&](int64_t b, T* buffer) {
    T *m = buffer, *w = m + plane, *dm = w + all, *dw = dm + plane;
    gather(machine.plane, memory.data + b * memory.batch, memory.slot, memory.column, m);
    pad(n.read, n.slots, weights + b * n.read * n.slots, w);
    std::fill_n(dm, plane + all, T(0));
    machine.read_backward(m, w, dreads + b * n.read * n.width, dm, dw);
    unpad(n.width, n.slots, dm, dmemory + b * n.width * n.slots);
    unpad(n.read, n.slots, dw, dweights + b * n.read * n.slots);
  });
}

// Rows of erase and add (V, W) of one sample, to the heads and back.
template <class T>
void to_heads(const NtmSizes& n, const T* erase, const T* add, const Heads<T>& heads) {
  for (int64_t v = 0; v < n.write; ++v) {
    copy(n.width, erase + v * n.width, heads[v].erase);
    copy(n.width, add + v * n.width, heads[v].add);
  }
}
template <class T>
void from_heads(const NtmSizes& n, const Heads<T>& heads, T* erase, T* add) {
  for (int64_t v = 0; v < n.write; ++v) {
    copy(n.width, heads[v].erase, erase + v * n.width);
    copy(n.width, heads[v].add, add + v * n.width);
  }
}

template <class T>
void write(const NtmSizes& n, NtmMemory<const T> memory, const T* weights, const T* erase, const T* add,
           T* after, int threads) {
  const Machine<T> machine{n, kPlain};
  const int64_t plane = machine.row(n.width), all = machine.row(n.write);
  over_samples<T>(n, plane + all + Heads<T>::size(n), threads, [&](int64_t b, T* buffer) {
    T *m = buffer, *w = m + plane;
    const Heads<T> heads{w + all, n.width, n.shift};
    gather(machine.plane, memory.data + b * memory.batch, memory.slot, memory.column, m);
    pad(n.write, n.slots, weights + b * n.write * n.slots, w);
    const int64_t row = b * n.write * n.width;
    to_heads(n, erase + row, add + row, heads);
    machine.writers(heads, w).forward(m, m);
    unpad(n.width, n.slots, m, after + b * n.width * n.slots);
  });
}

template <class T>
void write_backward(const NtmSizes& n, NtmMemory<const T> memory, const T* weights, const T* erase,
                    const T* add, NtmMemory<const T> dafter, T* dmemory, T* dweights, T* derase, T* dadd,
                    int threads) {
  const Machine<T> machine{n, kPlain};
  const int64_t plane = machine.row(n.width), all = machine.row(n.write), size = Heads<T>::size(n);
  over_samples<T>(n, 2 * (plane + all + size), threads, [&](int64_t b, T* buffer) {
    T *m = buffer, *dm = m + plane, *w = dm + plane, *dw = w + all;
    const Heads<T> heads{dw + all, n.width, n.shift}, grads{dw + all + size, n.width, n.shift};
    gather(machine.plane, memory.data + b * memory.batch, memory.slot, memory.column, m);
    gather(machine.plane, dafter.data + b * dafter.batch, dafter.slot, dafter.column, dm);
    pad(n.write, n.slots, weights + b * n.write * n.slots, w);
    std::fill_n(dw, all, T(0));
    const int64_t row = b * n.write * n.width;
    to_heads(n, erase + row, add + row, heads);
    machine.writers(heads, w).backward(m, dm, dw, grads);
    from_heads(n, grads, derase + row, dadd + row);
    unpad(n.width, n.slots, dm, dmemory + b * n.width * n.slots);
    unpad(n.write, n.slots, dw, dweights + b * n.write * n.slots);
  });
}

template <class T>
constexpr NtmTable<T> table = {forward<T>,       backward<T>, read<T>,
                               read_backward<T>, write<T>,    write_backward<T>};

}  // namespace

extern const NtmKernels ntm_kernels = {table<float>, table<double>};

}  // namespace ctm::CTM_LEVEL
