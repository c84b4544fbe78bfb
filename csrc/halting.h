// Adaptive computation time (arXiv 1603.08983, section 2): B samples, R rows, one per substep of a sample.
//
// A sample halts at its first row N where its probabilities h sum to the threshold, or at its last row. Rows
// before N weigh h, row N the remainder 1 - sum, rows after N nothing; ponder = N + remainder.
//
// A recurrence is an RNN (gates of width G = H, tanh) or an LSTM (G = 4H: input, forget, cell, output) over T
// timesteps. Its rows lie one substep after the other, and only samples that go on have one in the next; the
// caller computes the recurrent product of all rows of a substep.
#pragma once

#include <cstdint>

namespace ctm {

struct HaltingSizes {
  int64_t rows, batch, width;
};

struct RecurrenceSizes {
  int64_t batch, width;
  bool lstm;
};

// Rows [start, start + count): a substep of timestep t.
struct HaltingSpan {
  int64_t t, start, count;
};

// Those of cells and gates belong to an LSTM only. The state of timestep t lies at index t + 1, and index 0
// holds the one to start from.
template <class T>
struct Recurrence {
  const bool* mask;         // (T, B), false where padded; null: no padding
  const T *input, *flag;    // (T, B, G), (G): gates without recurrent part; added at first substeps
  const T *halting, *bias;  // (H), (1): the halting unit
  T *hidden, *cell;         // (T + 1, B, H): mean over substeps
  T *total, *ponder;        // (B): sum of the probabilities; (T, B)
  int64_t* steps;           // (T, B)
  T *previous, *row_hidden, *row_cell;  // (R, H): state before a row (hidden only), and what it gave
  T *gates, *probability, *weight;      // (R, G), (R), (R)
  int32_t *sample, *parent, *next;      // (R): the sample, its rows a substep before and after; -1: none
};

template <class T>
struct RecurrenceGrad {
  T *hidden, *cell;                  // (B, H): of the mean state of timestep t
  const T* ponder;                   // (T, B)
  const T *row_hidden, *weight;      // (R, H), (R): from outside; null: none
  const T *next_hidden, *next_cell;  // (., H): of the state before the rows of the next substep
  T* cell_before;                    // (count, H): of the cell before the rows of this one
  T* last;                           // (B): of the remainder; row N, which comes first, sets it
  T *input, *gates, *logit;          // (T, B, G) zero at first; (R, G), (R)
};

template <class T>
struct HaltingTable {
  // left (B), total (B) and ponder (B) are zero.
  void (*weights)(const HaltingSizes&, T threshold, bool force, const T* h, const int32_t* samples,
                  int32_t* left, T* total, T* weight, T* ponder);
  // weight as `weights` gave it. end, left (B): scratch, left zero.
  void (*weights_backward)(const HaltingSizes&, T threshold, bool force, const T* h, const int32_t* samples,
                           const T* dweight, const T* dponder, int32_t* left, T* total, int32_t* end, T* dh);
  // values (R, D); out (B, D) is zero.
  void (*mean)(const HaltingSizes&, const T* values, const T* weight, const int32_t* samples, T* out,
               int threads);
  void (*mean_backward)(const HaltingSizes&, const T* values, const T* weight, const int32_t* samples,
                        const T* dout, T* dvalues, T* dweight, int threads);
  // Makes the rows of a timestep's first substep at span.start; padded samples keep their state. Returns how
  // many.
  int64_t (*begin)(const RecurrenceSizes&, HaltingSpan, const Recurrence<T>&, int threads);
  // The rows hold their recurrent product, in gates of an LSTM, in row_hidden of an RNN. Makes the rows of
  // the next substep behind them and returns how many; none after the last one.
  int64_t (*substep)(const RecurrenceSizes&, HaltingSpan, bool last, T threshold, const Recurrence<T>&,
                     int threads);
  void (*substep_backward)(const RecurrenceSizes&, HaltingSpan, const Recurrence<T>&,
                           const RecurrenceGrad<T>&, int threads);
};

struct HaltingKernels {
  HaltingTable<float> f32;
  HaltingTable<double> f64;
};

}  // namespace ctm
