// All ticks of a Continuous Thought Machine in one call: inference in float32 (arXiv 2505.05522, section 3).
//
// Letters: B batch, T ticks, D neurons, M memory length, H hidden width, d input width, h heads, L tokens,
// K sets of tokens, G given inputs of width F, P action pairs, S output pairs, C predictions, E energy width.
//
// An engine packs its weights into one aligned block and works in another, both made with it. A run allocates
// nothing, takes no lock, throws nothing, and flushes denormals. Weights are bound to the SIMD level that
// made the engine.
//
// The caller has folded what is linear: the query's projections and scale into one map, the attention's
// output projection and the values' bias into the first synapse layer, temperatures into the neuron-level
// models. The keys' bias is left out: it moves all scores of a query alike.
//
// Weights may be narrower than the float32 that everything is computed in: they are widened while they are
// read.
#pragma once

#include <cstdint>

namespace ctm {

struct EngineSizes {
  int64_t batch, ticks;  // at most
  int64_t neurons, memory, hidden, deep, normed;
  int64_t width, heads, tokens, sets, action;  // attention: d, h, at most L and K, P; zeros without
  int64_t features, given;                     // F, at most G; zeros where no input is given
  int64_t pairs, classes, group, energy;       // S, C, predictions of one softmax, E (zero without head)
  int64_t stateful;                            // histories live on from call to call, no predictions
  int64_t threads;                             // each takes a share of the batch
  int64_t weights;                             // WeightType
};

enum class WeightType : int64_t { f32, bf16, i8 };

struct EngineMatrix {
  const void* data;    // of the engine's WeightType
  const float* scale;  // of each output, or null: int8 weights are multiples of it
};

enum class StageKind : int64_t { glu, silu, skip };

struct EngineStage {  // one linear map and what follows it, see synapse.h
  StageKind kind;
  int64_t width, inputs, source, skip;  // source, skip: stages before; a source of -1 reads the input
  float eps, outer_eps;
  EngineMatrix weight;  // (width, or twice that before a GLU; inputs)
  const float* bias;
  const float *norm, *norm_bias, *outer, *outer_bias;
};

// Copied by make. Null where the sizes have none of it. The first stage's weight is over [heads | z].
struct EngineWeights {
  const float *start, *start_post, *z0;             // (M, D), (M, D) if stateful, else (D)
  EngineMatrix query, from_given, project, energy;  // (d, P), (first outputs, F), (C, S), (E, S)
  const float *query_bias, *given_bias, *project_bias, *energy_bias;
  const float* keys_values;             // (2 d, d)
  EngineMatrix w1, w2;                  // as nlm.h has them, divided by their temperatures
  const float *b1, *b2;                 // scales are (2 H, D), (2, D)
  const float* eps;                     // of the LayerNorm before each layer, if normed
  const float *action_factor, *factor;  // exp(-decay), (P), (S)
  const float *head, *head_bias;        // (E), (1)
  const int32_t *action_left, *action_right, *left, *right;
};

// What lies before the recurrent part: a program over one matrix a sample. A stage turns a matrix (rows,
// inputs) into (rows, width); the elements of the first stage are those of a sample.
enum class FrontKind : int64_t {
  embed,   // weight (count, width): sums one of its rows for every column of int32 indices; first only
  linear,  // weight (width, inputs), bias (width)
  add,     // weight (rows, width)
  norm,    // LayerNorm: weight, bias (width)
  glu,     // inputs = 2 width
  relu,
  gelu,  // the exact one
  silu,
  tanh,
  turn,     // transposes, width = rows
  attend,   // self-attention of `count` heads among the rows, each [query | key | value], inputs = 3 width
  keep,     // remembers the matrix
  residual  // adds the remembered one
};

struct EngineFrontStage {
  FrontKind kind;
  int64_t rows, inputs, width, count;
  float eps;
  const float *weight, *bias;
};

struct EngineFront {  // without stages there is nothing in front
  const EngineFrontStage* stages;
  int64_t count;
};

struct EngineFronts {
  EngineFront tokens, given;  // gives a sample's (L, d); its F
};

// A sample stops after the first tick t, counted from 1, of at least min_ticks that ends `patience` ticks in
// a row on which one rule held. Rules that are off have a threshold that nothing meets.
struct EngineHalt {
  float certainty;  // 1 - normalised entropy >= certainty
  float energy;     // energy < energy
  float delta;      // |energy - that of the tick before| < delta
  int64_t min_ticks, patience;
  bool on;
};

enum class EngineReason : int32_t { last_tick, certainty, energy, convergence };

struct EngineCall {
  int64_t batch, ticks, tokens, sets, given;  // of this call
  bool raw;                                   // whether the data is to go through what lies in front
  const float* token_data;  // (K, B, L, d); raw (K, B, elements of a sample, int32 where they are embedded)
  const float* given_data;  // (G, B, F); raw likewise
  const int32_t* schedule;  // (T): k attends to the k-th tokens, -1 - g takes the g-th given
  EngineHalt halt;
  float *predictions, *certainties,
      *energies;           // (T, B, C), (T, B, 2), (T, B); of a halted sample the last repeat
  float* synchronisation;  // (B, S), of the last tick
  int32_t *used, *reason;  // (B): ticks used, EngineReason
  float *pre, *post;       // (B, M, D): histories afterwards, or null
};

struct EngineRun {
  bool finite;       // false: an input holds NaN or infinity, and nothing was computed
  int64_t computed;  // ticks of all samples together that were computed
};

struct EngineKernels {
  void* (*make)(const EngineSizes&, const EngineStage*, int64_t stages, const EngineWeights&,
                const EngineFronts&);
  void (*destroy)(void*);
  EngineRun (*run)(void*, const EngineCall&);
  // Histories (B, M, D) of a stateful engine, the oldest first; null resets them to the learned start.
  void (*set_state)(void*, int64_t batch, const float* pre, const float* post);
  void (*get_state)(void*, int64_t batch, float* pre, float* post);
};

}  // namespace ctm
