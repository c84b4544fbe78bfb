// Recurrent cells, step by step, in inference and float32: the Neural Turing Machine (ntm.h) and adaptive
// computation time (halting.h).
//
// Letters: B batch, T steps, I inputs, C width of a layer, L layers, G gates (C, or 4 C of an LSTM), O
// outputs, N slots of width W, R read and V write heads, P interface vector, F reads that are fed back.
//
// A layer's gates are [below | own hidden state] recurrent + constant. The constant is the input's projection
// in the lowest layer, the bias above; "below" is what was read, or the layer below.
//
// As an engine (engine.h) a cell packs its weights into one aligned block and works in another. A run
// allocates nothing, takes no lock, throws nothing, and flushes denormals. Weights are bound to the SIMD
// level that made the cell.
#pragma once

#include <cstdint>

#include "engine.h"
#include "ntm.h"

namespace ctm {

struct CellSizes {
  int64_t batch;  // at most
  int64_t inputs, width, layers, outputs;
  int64_t states;  // of a layer: 2 of an LSTM, 1 of tanh units that see their own, 0 of others
  int64_t slots, slot_width, read, write, shift, order, cosine, key, add, one_plus, shared;  // see ntm.h
  int64_t fed_back, split;  // F; whether the hidden state is [interface | output], and the last reads are fed
  int64_t most, classes;    // adaptive: ticks of a step, classes of a digit; 0 for logits
};

struct CellNumbers {
  float eps, clip, threshold;  // of the cosine, of interface and output; where a sample halts
};

struct CellLayer {
  const float *recurrent, *bias;  // (G, F or C, + C if it keeps a state), (G)
};

// Copied by make. Null where the sizes have none of it.
struct CellWeights {
  const float* from_input;                                     // (G, I)
  const float *interface, *interface_bias, *temperature;       // (P, C), (P); (1) if split
  const float *output, *output_bias;                           // (O, C + R W) or (O, C), (O)
  const float *memory, *reads, *read_weights, *write_weights;  // start: (W, N), (R, W), (R, N), (V, N)
  const float *flag, *halting, *halting_bias;                  // adaptive: (G), (C), (1)
};

// Null where a cell has none of it.
template <class T>
struct CellState {
  T *hidden, *cell;                 // (L, B, C)
  T* memory;                        // (B, W, N)
  T* reads;                         // (B, R, W)
  T *read_weights, *write_weights;  // (B, R, N), (B, V, N)
};

struct CellCall {
  int64_t batch, steps;
  const float* x;          // (T, B, I)
  float* output;           // (T, B, O)
  int32_t* ticks;          // adaptive: (T, B)
  float* remainder;        // adaptive: (T, B), the weight of the last tick
  CellState<float> state;  // afterwards
};

struct CellKernels {
  void* (*make)(const CellSizes&, const CellNumbers&, const CellLayer*, const CellWeights&);
  void (*destroy)(void*);
  // Goes on from the state that the call before left. Counts a tick of a sample, of which only adaptive cells
  // take several in a step.
  EngineRun (*run)(void*, const CellCall&);
  // Null members reset: to the start, hidden and cell states to zero.
  void (*set_state)(void*, int64_t batch, const CellState<const float>&);
  void (*get_state)(void*, int64_t batch, const CellState<float>&);
};

}  // namespace ctm
