// One tick of an engine's samples (see engine.h). For engine_cpu.cpp alone, compiled with it once per SIMD
// level.
#pragma once

#include "attend_head.h"
#include "engine_samples.h"
#include "nlm_norm.h"

namespace ctm::CTM_LEVEL {
namespace {

// y = init + x w over the inputs of a map from `first` on, to which x points.
inline void apply(const Map& m, int64_t count, int64_t first, const Rows<float>& rows) {
  constexpr int64_t P = kPanel<float>, step = kWide * P;  // panels that stay in the cache for all rows
  with_type(m.type, [&](auto type) {
    const auto panels = m.panels<decltype(type)>(first);
    for (int64_t at = 0; at < m.outputs; at += step) {
      const int64_t left = m.outputs - at;
      const LinearSizes n = {count, left < step ? left : step, m.inputs - first};
      rows_of_panels<float, CTM_ROWS, kWide>(0, n, rows.at(0, at), panels.at(at / P, P));
    }
  });
}

inline void apply(const Map& m, int64_t rows, const float* x, int64_t x_row, float* y) {
  apply(m, rows, 0, {x, x_row, m.bias, 0, y, m.outputs});
}

// alpha = r alpha + z[left] z[right], s = alpha / sqrt(beta), for one row.
inline void synchronise(const Pairs& p, const float* root, const float* z, float* alpha, float* s) {
  advance(p.count, z, p.left, p.right, p.factor, alpha);
  for (int64_t i = 0; i < p.count; ++i) s[i] = alpha[i] * root[i];
}

struct Tick {
  const Samples& s;
  const EngineCall& call;
  int64_t rows;

  const Net& net() const { return s.net; }
  const EngineSizes& n() const { return s.net.n; }
  const float* keys(int64_t set, int64_t id) const {
    return s.keys + (set * s.capacity + id) * 2 * n().width * n().tokens;
  }

  // Advances the action synchronisation of tick t and attends to the tokens `set` where that is not negative.
  void attend(int64_t t, int64_t set) const {
    const int64_t P = n().action;
    for (int64_t b = 0; b < rows; ++b)
      synchronise(net().action, net().action.root + t * P, s.z(b), s.alpha + b * P, s.action + b * P);
    if (set < 0) return;
    apply(net().query, rows, s.action, P, s.query);
    for (int64_t b = 0; b < rows; ++b) attend_row(b, keys(set, s.id[b]));
  }

  void attend_row(int64_t b, const float* keys) const {
    const int64_t width = n().width / n().heads, L = call.tokens;
    const float* values = keys + n().width * L;
    for (int64_t at = 0; at < n().width; at += width) {
      combine(width, L, s.query + b * n().width + at, keys + at * L, s.scores);
      softmax(L, s.scores);
      dots(width, L, s.scores, values + at * L, s.x + b * net().recurrent() + at);
    }
  }

  // The first linear map: of [heads | z], or of z on top of what a given input adds at every tick.
  void first(int64_t given) const {
    const Map& m = net().layers[0].map;
    const int64_t K = net().recurrent();
    if (given < 0) return apply(m, rows, s.x, K, s.linear);
    const float* constant = s.constant + given * s.capacity * m.outputs;
    apply(m, rows, n().width, {s.z(0), K, constant, m.outputs, s.linear, m.outputs});
  }

  // From the input to pre-activations, left in `row` of every history.
  void synapses(int64_t given, int64_t row) const {
    for (size_t i = 0; i < net().layers.size(); ++i) {
      const Layer& l = net().layers[i];
      if (l.source < 0)
        first(given);
      else
        apply(l.map, rows, s.outputs[static_cast<size_t>(l.source)], l.map.inputs, s.linear);
      const bool last = i + 1 == net().layers.size();
      float* y = last ? s.history + row * n().neurons : s.outputs[i];
      for (int64_t b = 0; b < rows; ++b) pointwise(l, b, y + b * (last ? s.window() : l.width));
    }
  }

  void pointwise(const Layer& l, int64_t b, float* y) const {
    const float* x = s.linear + b * l.map.outputs;
    if (l.kind == StageKind::silu) return silu_norm_row(l.width, x, l.norm, y);
    if (l.kind == StageKind::glu) {
      gated(l.width, x, s.scratch);
      return norm_row(l.width, s.scratch, l.norm, y);
    }
    skipped(l.width, x, l.norm, s.outputs[static_cast<size_t>(l.skip)] + b * l.width, s.scratch);
    norm_row(l.width, s.scratch, l.outer, y);
  }

  // The neuron-level models on the window of the history that begins at `row`.
  void models(int64_t row) const {
    const NlmSizes sizes = net().nlm(rows);
    const Masks<float> masks(sizes, {});
    const NlmStrides strides = {s.window(), 1, n().neurons};
    const float* x = s.history + row * n().neurons;
    with_type(net().query.type, [&](auto type) {
      for (int64_t i = 0; i < block_count<float>(sizes); ++i)
        for_each_tile<float, float, CTM_ROWS>(
            sizes, masks, net().models.block<decltype(type)>(sizes, i), block_at<float>(sizes, i), s.models,
            0, rows, [&](const auto& tile) {
              if (n().normed)
                normed_forward(tile, x, strides, net().eps, s.z(0), net().recurrent());
              else
                tile.forward(x, strides, s.z(0), net().recurrent());
            });
    });
  }

  // Tick t. A history is a ring of M rows that is written twice, M rows apart, so that every window is whole;
  // `oldest` is the row to be replaced.
  void run(int64_t t, int64_t oldest) const {
    const int64_t input = call.schedule[t], newest = oldest + n().memory;
    if (n().heads) attend(t, input);
    synapses(-1 - input, newest);
    for (int64_t b = 0; b < rows; ++b) mirror(s.history + b * s.window(), oldest);
    models(oldest + 1);
    for (int64_t b = 0; n().stateful && b < rows; ++b) {
      copy(n().neurons, s.z(b), s.post + b * s.window() + newest * n().neurons);
      mirror(s.post + b * s.window(), oldest);
    }
  }

  void mirror(float* history, int64_t row) const {
    copy(n().neurons, history + (row + n().memory) * n().neurons, history + row * n().neurons);
  }
};

}  // namespace
}  // namespace ctm::CTM_LEVEL
