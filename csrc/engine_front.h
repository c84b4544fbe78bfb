// What lies before the recurrent part of an engine (see engine.h): a program over one matrix a sample. For
// engine_cpu.cpp alone, compiled with it once per SIMD level.
#pragma once

#include <algorithm>
#include <utility>

#include "engine_tick.h"

namespace ctm::CTM_LEVEL {
namespace {

constexpr int64_t kFrontRows = 64;  // rows of samples that run through a program together

struct FrontLayer {
  FrontKind kind;
  int64_t rows, inputs, width, count;
  Map map;           // of a linear layer
  Norm<float> norm;  // of a LayerNorm
  const float* table;

  int64_t elements() const { return rows * (kind == FrontKind::turn ? inputs : std::max(inputs, width)); }
};

struct Front {
  std::vector<FrontLayer> layers;

  Front(const EngineFront& from, Packer& p) : layers(static_cast<size_t>(from.count)) {
    for (int64_t i = 0; i < from.count; ++i) layers[static_cast<size_t>(i)] = layer(from.stages[i], p);
  }

  bool empty() const { return layers.empty(); }
  bool embeds() const { return !empty() && layers[0].kind == FrontKind::embed; }
  int64_t inputs() const { return layers[0].rows * layers[0].inputs; }  // numbers of a sample
  int64_t outputs() const {
    const FrontLayer& last = layers.back();
    return last.rows * (last.kind == FrontKind::turn ? last.inputs : last.width);
  }

  template <class Size>
  int64_t most(const Size& size) const {
    int64_t found = 0;
    for (const FrontLayer& l : layers) found = std::max(found, size(l));
    return found;
  }

 private:
  static FrontLayer layer(const EngineFrontStage& s, Packer& p) {
    FrontLayer l = {s.kind, s.rows, s.inputs, s.width, s.count, {}, {}, nullptr};
    if (s.kind == FrontKind::linear)
      l.map = p.map(WeightType::f32, s.width, s.inputs, {s.weight, nullptr}, s.bias);
    if (s.kind == FrontKind::norm) l.norm = {p.keep(s.width, s.weight), p.keep(s.width, s.bias), s.eps};
    if (s.kind == FrontKind::embed) l.table = p.keep(s.count * s.width, s.weight);
    if (s.kind == FrontKind::add) l.table = p.keep(s.rows * s.width, s.weight);
    return l;
  }
};

struct Fronts {
  Front tokens, given;

  Fronts(const EngineFronts& from, Packer& p) : tokens(from.tokens, p), given(from.given, p) {}
};

// The memory of one thread, for whichever program runs.
struct FrontMemory {
  int64_t samples;               // at once
  float *value, *other, *kept;   // (samples, elements of the largest matrix), the last where one is kept
  float *keys_values, *weights;  // (2 d, L), (L): of an attention

  FrontMemory(const Fronts& fronts, int64_t rows, Arena<float>& a) {
    const auto most = [&](const auto& size) {
      return std::max(fronts.tokens.most(size), fronts.given.most(size));
    };
    const int64_t longest = most([](const FrontLayer& l) { return l.rows; });
    const int64_t elements = most([](const FrontLayer& l) { return l.elements(); });
    samples = std::clamp(kFrontRows / std::max<int64_t>(longest, 1), int64_t{1}, rows);
    value = a.take(samples * elements), other = a.take(samples * elements);
    kept = a.take(samples *
                  most([](const FrontLayer& l) { return l.kind == FrontKind::keep ? l.elements() : 0; }));
    const auto attended = [](const FrontLayer& l) { return l.kind == FrontKind::attend ? l.rows : 0; };
    keys_values = a.take(most([&](const FrontLayer& l) { return 2 * l.width * attended(l); }));
    weights = a.take(most(attended));
  }
};

// x erfc(-x / sqrt(2)) / 2, where erfc(a) = t p(t) exp(-a^2) for a >= 0 and t = 1 / (1 + a / 2): a least
// squares fit with a relative error of 4e-7, so that the negative tail stays exact too.
CTM_INLINE Vec<float> gelu(Vec<float> x) {
  constexpr float fit[] = {-0.0601087064f, 0.289446115f, -0.496829569f, 0.288515151f, -0.0333990194f,
                           0.205360427f,   0.242479384f, 0.282453835f,  0.282082349f};
  const Vec<float> a = (x < 0.0f ? -x : x) * 0.707106781f, t = 1.0f / (1.0f + 0.5f * a);
  Vec<float> p = splat(fit[0]);
  CTM_UNROLL for (int i = 1; i < 9; ++i) p = p * t + fit[i];
  const Vec<float> tail = 0.5f * t * p * exp(-(a * a));
  return x * (x < 0.0f ? tail : 1.0f - tail);
}

// y[c][r] = x[r][c]
inline void turn(int64_t rows, int64_t columns, const float* x, int64_t x_row, float* y) {
  for (int64_t c = 0; c < columns; ++c)
    for (int64_t r = 0; r < rows; ++r) y[c * rows + r] = x[r * x_row + c];
}

// One run of a program on a few samples.
class Program {
 public:
  Program(const Front& f, const FrontMemory& m, int64_t samples)
      : front_(f), memory_(m), samples_(samples), value_(m.value), other_(m.other) {}

  // From x, of a program that embeds int32 indices, to what lies in memory until the next run.
  const float* run(const float* x) {
    if (!front_.embeds()) copy(samples_ * front_.inputs(), x, value_);
    for (const FrontLayer& l : front_.layers) step(l, x);
    return value_;
  }

 private:
  int64_t rows(const FrontLayer& l) const { return samples_ * l.rows; }

  void step(const FrontLayer& l, const float* x) {
    const int64_t count = rows(l) * l.width;
    switch (l.kind) {
      case FrontKind::embed:
        return embed(l, reinterpret_cast<const int32_t*>(x));
      case FrontKind::linear:
        apply(l.map, rows(l), value_, l.inputs, other_);
        return std::swap(value_, other_);
      case FrontKind::add:
        return add(l.rows * l.width, l.table);
      case FrontKind::norm:
        for (int64_t r = 0; r < rows(l); ++r)
          norm_row(l.width, value_ + r * l.width, l.norm, value_ + r * l.width);
        return;
      case FrontKind::glu:
        for (int64_t r = 0; r < rows(l); ++r) gated(l.width, value_ + r * l.inputs, other_ + r * l.width);
        return std::swap(value_, other_);
      case FrontKind::relu:
        return pointwise(count, [](Vec<float> v) { return v < 0.0f ? Vec<float>{} : v; });
      case FrontKind::gelu:
        return pointwise(count, [](Vec<float> v) { return gelu(v); });
      case FrontKind::silu:
        return pointwise(count, [](Vec<float> v) { return v * sigmoid(v); });
      case FrontKind::tanh:
        return pointwise(count, [](Vec<float> v) { return tanh(v); });
      case FrontKind::turn:
        for (int64_t i = 0, size = l.rows * l.inputs; i < samples_; ++i)
          turn(l.rows, l.inputs, value_ + i * size, l.inputs, other_ + i * size);
        return std::swap(value_, other_);
      case FrontKind::attend:
        for (int64_t i = 0; i < samples_; ++i)
          attend(l, value_ + i * l.rows * l.inputs, other_ + i * l.rows * l.width);
        return std::swap(value_, other_);
      case FrontKind::keep:
        return copy(count, value_, memory_.kept);
      case FrontKind::residual:
        return add_row(count, memory_.kept, value_);
    }
  }

  template <class F>
  void pointwise(int64_t count, const F& f) {
    over_row<float>(count, [&](int64_t i, int k) { store_part(value_ + i, f(load_part(value_ + i, k)), k); });
  }

  // The sum of one row of the table for every column of indices.
  void embed(const FrontLayer& l, const int32_t* indices) {
    for (int64_t r = 0; r < rows(l); ++r, indices += l.inputs) {
      float* y = value_ + r * l.width;
      copy(l.width, l.table + indices[0] * l.width, y);
      for (int64_t c = 1; c < l.inputs; ++c) add_row(l.width, l.table + indices[c] * l.width, y);
    }
  }

  static void add_row(int64_t count, const float* x, float* y) {
    over_row<float>(
        count, [&](int64_t i, int k) { store_part(y + i, load_part(y + i, k) + load_part(x + i, k), k); });
  }

  // The same table for every sample.
  void add(int64_t size, const float* table) {
    for (int64_t i = 0; i < samples_; ++i) add_row(size, table, value_ + i * size);
  }

  // Self-attention among a sample's rows x, [query | key | value] each.
  void attend(const FrontLayer& l, const float* x, float* y) {
    const int64_t d = l.width, L = l.rows, width = d / l.count;
    turn(L, 2 * d, x + d, 3 * d, memory_.keys_values);
    for (int64_t r = 0; r < L; ++r)
      for (int64_t at = 0; at < d; at += width) {
        combine(width, L, x + r * 3 * d + at, memory_.keys_values + at * L, memory_.weights);
        softmax(L, memory_.weights);
        dots(width, L, memory_.weights, memory_.keys_values + (d + at) * L, y + r * d + at);
      }
  }

  const Front& front_;
  const FrontMemory& memory_;
  const int64_t samples_;
  float *value_, *other_;
};

}  // namespace
}  // namespace ctm::CTM_LEVEL
