// Memory of the Neural Turing Machine (arXiv 1410.5401, section 3): N slots of width W, addressed by R read
// heads and V write heads over T steps. H = R + V, read heads first; a head shifts by -(S / 2) to S / 2.
//
//   content = softmax(beta cosine(key, slot)),  gated = gate content + (1 - gate) previous
//   shifted[n] = sum_s shift[s] gated[(n + S / 2 - s) mod N],  w = softmax(gamma log(max(shifted, tiny)))
//   read = sum_n w[n] slot_n,  slot_n' = slot_n prod_v (1 - w_v[n] erase_v) + sum_v w_v[n] add_v
//
// An interface vector holds head by head: key W, beta, gate, shift S, gamma, and of a write head erase W, add
// W. Tensors are dense in the order of their shape unless strides are given. Null outputs are not computed,
// and a null gradient is zero.
#pragma once

#include <cstdint>

namespace ctm {

enum class NtmOrder : int { write_read, read_write, previous_read, address_only };
enum class NtmCosine : int { root, root_product, norm, product, clamp, operands };
enum class NtmActivation : int { linear, tanh, sigmoid };

struct NtmSizes {
  int64_t steps, batch, slots, width, read, write, shift;

  int64_t heads() const { return read + write; }
  int64_t interface() const { return heads() * (width + shift + 3) + 2 * width * write; }
};

struct NtmVariant {
  NtmOrder order;
  NtmCosine cosine;
  NtmActivation key, add;
  bool one_plus;  // beta is 1 + softplus
  bool shared;    // every head goes on from the last write head's weights
  bool raw;       // interface vectors hold raw values; else activated ones
  double eps;
};

template <class T>
struct NtmMemory {  // (B, N, W) with these strides
  T* data;
  int64_t batch, slot, column;
};

template <class T>
struct NtmInterface {  // (T, B, I) with these strides
  const T* data;
  int64_t step, batch;
};

// Weights of all heads: read (B, R, N), write (B, V, N), or of all T steps before that, `step` elements
// apart. With `step` 0 they are those of the last step.
template <class T>
struct NtmWeights {
  T *read, *write;
  int64_t read_step, write_step;
};

template <class T>
struct NtmTable {
  // reads (T, B, R, W); after (B, W, N): the memory after the last step, slots innermost.
  void (*forward)(const NtmSizes&, const NtmVariant&, NtmMemory<const T> memory, NtmInterface<T> interface,
                  NtmWeights<const T> before, T* reads, T* after, NtmWeights<T> weights, int threads);
  // dbefore (B, W, N), dinterface (T, B, I), dweights: those of the memory, interface and weights before the
  // first step, from dreads, dafter and those of the weights that forward wrote.
  void (*backward)(const NtmSizes&, const NtmVariant&, NtmMemory<const T> memory, NtmInterface<T> interface,
                   NtmWeights<const T> before, const T* dreads, NtmMemory<const T> dafter,
                   NtmWeights<const T> dweights, T* dbefore, T* dinterface, NtmWeights<T> dprevious,
                   int threads);
  // reads (B, R, W) with weights (B, R, N)
  void (*read)(const NtmSizes&, NtmMemory<const T> memory, const T* weights, T* reads, int threads);
  void (*read_backward)(const NtmSizes&, NtmMemory<const T> memory, const T* weights, const T* dreads,
                        T* dmemory, T* dweights, int threads);
  // after (B, W, N) with weights (B, V, N), erase and add (B, V, W)
  void (*write)(const NtmSizes&, NtmMemory<const T> memory, const T* weights, const T* erase, const T* add,
                T* after, int threads);
  void (*write_backward)(const NtmSizes&, NtmMemory<const T> memory, const T* weights, const T* erase,
                         const T* add, NtmMemory<const T> dafter, T* dmemory, T* dweights, T* derase, T* dadd,
                         int threads);
};

struct NtmKernels {
  NtmTable<float> f32;
  NtmTable<double> f64;
};

}  // namespace ctm
