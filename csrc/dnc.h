// Memory of the Differentiable Neural Computer (Nature 538, 471-476, Methods): T steps of B samples from raw
// interface vectors, and its two parts that are ops of their own.
//
// Letters: T steps, B batch, N slots, W width of a slot, R read heads, K links kept per slot (N: dense), I
// length of an interface vector. All tensors are contiguous. Every step, in this order: usage, allocation,
// write weighting, write, links and precedence, read weightings, reads.
#pragma once

#include <cstdint>

namespace ctm {

struct DncSizes {
  int64_t steps, batch, slots, width, heads, links;
  bool sparse;
  int64_t interface() const { return heads * (width + 5) + 3 * width + 3; }
};

struct DncOptions {
  double eps, usage_eps;
  bool oneplus;        // strengths are 1 + softplus, or softplus
  bool detach_writes;  // no gradient from the usage to the write weighting before
};

template <class T>
struct DncInputs {
  const T *memory, *interface;  // (B, N, W), (T, B, I)
  const T *usage, *link;        // (B, N), (B, N, K)
  const T *precedence, *write;  // (B, N)
  const T* read;                // (B, R, N)
  const int64_t* columns;       // (B, N, K) of a sparse link, ascending in every row, in [0, N)
};

// Results of all steps, and what is left after the last; or the gradients of all that.
template <class T>
struct DncOutputs {
  T *reads, *memory;      // (T, B, R, W), (B, N, W)
  T *usage, *link;        // (T, B, N), (B, N, K)
  T *precedence, *write;  // (B, N), (T, B, N)
  T* read;                // (T, B, R, N)
};

// Gradients of DncInputs; all are written.
template <class T>
struct DncGradients {
  T *memory, *interface, *usage, *link, *precedence, *write, *read;
};

// One update of links: results, or their gradients.
template <class T>
struct DncLinks {
  T *link, *precedence, *forward, *backward;  // (B, N, K), (B, N), (B, R, N) twice
};

template <class T>
struct DncTable {
  // columns (B, N, K) of the new sparse link are written.
  void (*forward)(const DncSizes&, const DncOptions&, const DncInputs<T>&, const DncOutputs<T>&,
                  int64_t* columns, int threads);
  // `saved` holds usage, write and read of all steps; nothing else of it is read.
  void (*backward)(const DncSizes&, const DncOptions&, const DncInputs<T>&, const DncOutputs<T>& saved,
                   const DncOutputs<const T>& gradients, const DncGradients<T>& found, int threads);
  // `in` holds link, precedence, write (of this step), read and columns; nothing else of it is read.
  void (*link_forward)(const DncSizes&, const DncInputs<T>& in, const DncLinks<T>& out, int64_t* columns,
                       int threads);
  void (*link_backward)(const DncSizes&, const DncInputs<T>& in, const DncLinks<const T>& gradients,
                        const DncGradients<T>& found, int threads);
  // usage, out, gradient, dusage: (B, N)
  void (*allocation)(const DncSizes&, double eps, const T* usage, T* out, int threads);
  void (*allocation_backward)(const DncSizes&, double eps, const T* usage, const T* gradient, T* dusage,
                              int threads);
};

struct DncKernels {
  DncTable<float> f32;
  DncTable<double> f64;
};

}  // namespace ctm
