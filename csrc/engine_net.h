// The packed weights of an engine (see engine.h). For engine_cpu.cpp alone, compiled with it once per SIMD
// level.
#pragma once

#include <vector>

#include "engine.h"
#include "linear_tile.h"
#include "nlm_narrow.h"
#include "synapse_rows.h"
#include "sync_rows.h"

namespace ctm::CTM_LEVEL {
namespace {

// Calls body with a value of the type that weights have.
template <class Body>
CTM_INLINE auto with_type(WeightType type, const Body& body) {
  if (type == WeightType::bf16) return body(BFloat16{});
  if (type == WeightType::i8) return body(int8_t{});
  return body(float{});
}

struct Map {  // a linear map in panels (see linear.h)
  WeightType type;
  int64_t outputs, inputs;
  const void* blocks;
  const float *scale, *bias;  // scales of whole panels

  template <class W>
  Panels<W> panels(int64_t first_input) const {
    constexpr int64_t P = kPanel<float>;
    return {static_cast<const W*>(blocks) + first_input * P, inputs * P, scale};
  }
};

struct Models {  // neuron-level models in blocks
  const void* blocks;
  const float* affine;  // of narrow weights

  template <class W>
  auto block(const NlmSizes& n, int64_t i) const {
    if constexpr (std::is_same_v<W, float>)
      return BlockWeights<float>{n, static_cast<const float*>(blocks) + i * block_elements<float>(n)};
    else
      return NarrowWeights<W>{n, static_cast<const W*>(blocks) + i * NarrowWeights<W>::elements(n),
                              affine + i * NarrowWeights<W>::affine_elements(n)};
  }
};

struct Layer {
  StageKind kind;
  int64_t width, source, skip;
  Map map;
  Norm<float> norm, outer;
};

// Lays out weights one after the other; without memory it only counts.
class Packer {
 public:
  Packer(float* data, WeightType type) : type_(type) { arena_.data = data; }
  int64_t used() const { return arena_.used; }

  template <class U>
  const U* keep(int64_t count, const U* from) {
    U* to = arena_.take<U>(count);
    if (to && from) copy(count, from, to);
    return to;
  }
  Map map(int64_t outputs, int64_t inputs, const EngineMatrix& m, const float* bias) {
    return map(type_, outputs, inputs, m, bias);
  }
  Map map(WeightType type_of, int64_t outputs, int64_t inputs, const EngineMatrix& m, const float* bias) {
    const int64_t panels = panel_count<float>(outputs);
    float* scale = arena_.take(type_of == WeightType::i8 ? panels * kPanel<float> : 0);
    if (scale && m.scale) {
      clear(scale, panels * kPanel<float>);
      copy(outputs, m.scale, scale);
    }
    const void* blocks = with_type(type_of, [&](auto type) -> const void* {
      using W = decltype(type);
      W* to = arena_.take<W>(panels * kPanel<float> * inputs);
      for (int64_t panel = 0; to && panel < panels; ++panel)
        pack_panel<float>(panel, outputs, inputs, static_cast<const W*>(m.data), inputs, 1, to);
      return to;
    });
    return {type_of, outputs, inputs, blocks, scale, keep(outputs, bias)};
  }
  Models models(const NlmSizes& n, const EngineWeights& w) {
    return with_type(type_, [&](auto type) {
      using W = decltype(type);
      const W *w1 = static_cast<const W*>(w.w1.data), *w2 = static_cast<const W*>(w.w2.data);
      if constexpr (std::is_same_v<W, float>) {
        float* packed = arena_.take(packed_elements<float>(n));
        if (packed) pack_typed<float>(n, w1, w.b1, 1.0f, w2, w.b2, 1.0f, packed, 1);
        return Models{packed ? packed + kHeader<float> : nullptr, nullptr};
      } else {
        const int64_t blocks = block_count<float>(n);
        W* data = arena_.take<W>(blocks * NarrowWeights<W>::elements(n));
        float* affine = arena_.take(blocks * NarrowWeights<W>::affine_elements(n));
        if (data)
          pack_narrow<W>(n, {w1, w.b1, w.w1.scale, n.memory, n.hidden}, {w2, w.b2, w.w2.scale, n.hidden, 1},
                         data, affine);
        return Models{data, affine};
      }
    });
  }
  // 1 / sqrt(beta) of every tick (T, pairs), from beta = beta0 before the first.
  const float* roots(int64_t ticks, int64_t pairs, const float* factor, float beta0) {
    float* beta = arena_.take(pairs);
    float* table = arena_.take(ticks * pairs);
    if (!table) return nullptr;
    for (int64_t p = 0; p < pairs; ++p) beta[p] = beta0;
    ctm::CTM_LEVEL::roots<float>({ticks, 1, 0, pairs, false}, factor, beta, beta, table);
    return table;
  }

 private:
  const WeightType type_;
  Arena<float> arena_;
};

struct Pairs {  // of one synchronisation
  int64_t count;
  const int32_t *left, *right;
  const float *factor, *root;
};

struct Net {
  EngineSizes n;
  std::vector<Layer> layers;
  Map query, from_given, project, energy;
  Pairs action, out;
  const float *start, *start_post, *z0, *keys_values, *head, *head_bias, *eps;
  Models models;

  Net(const EngineSizes& sizes, const EngineStage* stages, int64_t count, const EngineWeights& w, Packer& p)
      : n(sizes), layers(static_cast<size_t>(count)) {
    for (int64_t i = 0; i < count; ++i) layers[static_cast<size_t>(i)] = layer(stages[i], p);
    query = p.map(n.width, n.action, w.query, w.query_bias);
    from_given = p.map(n.features ? layers[0].map.outputs : 0, n.features, w.from_given, w.given_bias);
    project = p.map(n.classes, n.pairs, w.project, w.project_bias);
    energy = p.map(n.energy, n.pairs, w.energy, w.energy_bias);
    action = {n.action, p.keep(n.action, w.action_left), p.keep(n.action, w.action_right),
              p.keep(n.action, w.action_factor), p.roots(n.ticks, n.action, w.action_factor, 0.0f)};
    out = {n.pairs, p.keep(n.pairs, w.left), p.keep(n.pairs, w.right), p.keep(n.pairs, w.factor),
           p.roots(n.stateful ? n.memory : n.ticks, n.pairs, w.factor, n.stateful ? 0.0f : 1.0f)};
    start = p.keep(n.memory * n.neurons, w.start);
    start_post = p.keep(n.stateful ? n.memory * n.neurons : 0, w.start_post);
    z0 = p.keep(n.stateful ? 0 : n.neurons, w.z0);
    keys_values = p.keep(2 * n.width * n.width, w.keys_values);
    head = p.keep(n.energy, w.head);
    head_bias = p.keep(n.energy ? 1 : 0, w.head_bias);
    models = p.models(nlm(1), w);
    eps = p.keep(n.normed ? 1 + (n.deep != 0) : 0, w.eps);
  }

  NlmSizes nlm(int64_t rows) const { return {rows, n.neurons, n.memory, n.hidden, n.deep != 0}; }
  int64_t recurrent() const { return n.width + n.neurons; }  // columns of [heads | z]
  int64_t widest() const {
    int64_t most = 0;
    for (const Layer& l : layers) most = l.map.outputs > most ? l.map.outputs : most;
    return most;
  }

 private:
  static Layer layer(const EngineStage& s, Packer& p) {
    const int64_t outputs = s.kind == StageKind::glu ? 2 * s.width : s.width;
    const int64_t outer = s.kind == StageKind::skip ? s.width : 0;
    const Map map = p.map(outputs, s.inputs, s.weight, s.bias);
    const Norm<float> norm = {p.keep(s.width, s.norm), p.keep(s.width, s.norm_bias), s.eps};
    return {s.kind,
            s.width,
            s.source,
            s.skip,
            map,
            norm,
            {p.keep(outer, s.outer), p.keep(outer, s.outer_bias), s.outer_eps}};
  }
};

}  // namespace
}  // namespace ctm::CTM_LEVEL
