// The memory that the samples of one thread work in (see engine.h). For engine_cpu.cpp alone, compiled with
// it once per SIMD level.
#pragma once

#include "engine_net.h"

namespace ctm::CTM_LEVEL {
namespace {

// Rows of synchronisation that are read out together while nothing waits for them.
constexpr int64_t kPending = 64;

// A row is a sample that still runs. Sizes are those of the capacity N in rows; a run uses the first ones.
struct Samples {
  const Net& net;
  int64_t capacity, pending;
  int64_t oldest = 0;                           // row of the histories that the next tick replaces
  float *x, *alpha, *action, *query, *scores;   // (N, d + D), (N, P), (N, P), (N, d), (L)
  float *keys, *panels;                         // (K, N, 2 d, L), packed tokens of one sample
  float *constant, *linear, *scratch;           // (G, N, outputs), (N, widest), (widest)
  std::vector<float*> outputs;                  // of every stage but the last, (N, width)
  float *history, *post;                        // (N, 2 M, D), the latter if stateful
  float* models;                                // scratch of a tile of neuron-level models
  float *sum, *synchronisation;                 // (N, S), (pending, S)
  float *logits, *shifted, *exponential;        // (pending, C), (C), (C)
  float *certainty, *hidden, *energy, *before;  // (pending, 2), (pending, E), (pending), (N)
  int32_t *id, *streak, *ended;                 // (N), (N, 3), (N)

  Samples(const Net& n, int64_t rows, Arena<float>& a) : net(n), capacity(rows) {
    const EngineSizes& s = net.n;
    const int64_t outputs_ = net.layers[0].map.outputs;
    pending = rows > kPending ? rows : kPending;
    x = a.take(rows * net.recurrent());
    alpha = a.take(rows * s.action);
    action = a.take(rows * s.action);
    query = a.take(rows * s.width);
    scores = a.take(s.tokens);
    keys = a.take(s.sets * rows * 2 * s.width * s.tokens);
    panels = a.take(panel_count<float>(s.tokens) * kPanel<float> * s.width);
    constant = a.take(s.given * rows * outputs_);
    linear = a.take(rows * net.widest());
    scratch = a.take(net.widest());
    for (const Layer& l : net.layers) outputs.push_back(a.take(rows * l.width));
    history = a.take(rows * 2 * s.memory * s.neurons);
    post = a.take(s.stateful ? rows * 2 * s.memory * s.neurons : 0);
    models = a.take(V<float> * CTM_ROWS * (s.memory + 2 * s.hidden));
    sum = a.take(rows * s.pairs);
    synchronisation = a.take(pending * s.pairs);
    logits = a.take(pending * s.classes);
    shifted = a.take(s.classes);
    exponential = a.take(s.classes);
    certainty = a.take(pending * 2);
    hidden = a.take(pending * s.energy);
    energy = a.take(pending);
    before = a.take(rows);
    id = a.take<int32_t>(rows);
    streak = a.take<int32_t>(rows * 3);
    ended = a.take<int32_t>(rows);
  }

  float* z(int64_t row) const { return x + row * net.recurrent() + net.n.width; }
  int64_t window() const { return 2 * net.n.memory * net.n.neurons; }  // of a row's history
};

// Moves what a row carries from tick to tick into the place of another.
inline void move_row(const Samples& r, int64_t from, int64_t to) {
  const EngineSizes& n = r.net.n;
  const int64_t outputs = r.net.layers[0].map.outputs;
  copy(n.neurons, r.z(from), r.z(to));
  copy(n.action, r.alpha + from * n.action, r.alpha + to * n.action);
  copy(n.pairs, r.sum + from * n.pairs, r.sum + to * n.pairs);
  copy(r.window(), r.history + from * r.window(), r.history + to * r.window());
  for (int64_t g = 0; g < n.given; ++g) {
    float* plane = r.constant + g * r.capacity * outputs;
    copy(outputs, plane + from * outputs, plane + to * outputs);
  }
  r.before[to] = r.before[from];
  r.id[to] = r.id[from];
  copy(3, r.streak + from * 3, r.streak + to * 3);
}

}  // namespace
}  // namespace ctm::CTM_LEVEL
