#include "ntm.h"

#include <algorithm>

#include "ntm_machine.h"
#include "parallel.h"

// Samples are independent, and the memory of one fits the cache: every thread takes some samples and runs all
// their steps. The backward runs forward again and records each step, so nothing is kept between the two
// passes.

namespace ctm::CTM_LEVEL {
namespace {

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
