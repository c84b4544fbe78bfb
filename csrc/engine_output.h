// What an engine reads out of its samples: predictions, certainties, energies, and when to stop (see
// engine.h). For engine_cpu.cpp alone, compiled with it once per SIMD level.
#pragma once

#include <cmath>

#include "engine_tick.h"

namespace ctm::CTM_LEVEL {
namespace {

// [normalised entropy, 1 - it] of one row of logits, averaged over groups of `group` classes.
inline void certainty_row(const Samples& s, const float* x, float* out) {
  const int64_t C = s.net.n.classes, group = s.net.n.group;
  for (int64_t g = 0; g < C; g += group) {
    float top = x[g];
    for (int64_t i = g + 1; i < g + group; ++i) top = x[i] > top ? x[i] : top;
    for (int64_t i = g; i < g + group; ++i) s.shifted[i] = x[i] - top;
  }
  over_row<float>(
      C, [&](int64_t i, int k) { store_part(s.exponential + i, exp(load_part(s.shifted + i, k)), k); });
  float total = 0;
  for (int64_t g = 0; g < C; g += group) {
    float sum = 0, along = 0;
    for (int64_t i = g; i < g + group; ++i) {
      sum += s.exponential[i];
      along += s.exponential[i] * s.shifted[i];
    }
    total += std::log(sum) - along / sum;
  }
  const float groups = static_cast<float>(C / group);
  out[0] = total / std::log(static_cast<float>(group)) / groups;
  out[1] = 1.0f - out[0];
}

// head(SiLU(hidden)) of one row
inline float energy_row(const Net& net, const float* hidden) {
  Vec<float> sum{};
  over_row<float>(net.n.energy, [&](int64_t i, int k) {
    const Vec<float> value = load_part(hidden + i, k);
    sum += value * sigmoid(value) * load_part(net.head + i, k);
  });
  return sum_lanes<float>(sum) + *net.head_bias;
}

// The results of ticks [tick, tick + ticks) of all rows, whose synchronisation waits in s.synchronisation.
struct ReadOut {
  const Samples& s;
  const EngineCall& call;
  int64_t first, rows;  // number of the call's sample that is this thread's first

  void run(int64_t tick, int64_t ticks) const {
    const EngineSizes& n = s.net.n;
    const int64_t count = ticks * rows;
    apply(s.net.project, count, s.synchronisation, n.pairs, s.logits);
    if (n.energy) apply(s.net.energy, count, s.synchronisation, n.pairs, s.hidden);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t sample = (tick + i / rows) * call.batch + first + s.id[i % rows];
      const float* logits = s.logits + i * n.classes;
      certainty_row(s, logits, s.certainty + 2 * i);
      copy(n.classes, logits, call.predictions + sample * n.classes);
      copy(2, s.certainty + 2 * i, call.certainties + sample * 2);
      if (n.energy) call.energies[sample] = s.energy[i] = energy_row(s.net, s.hidden + i * n.energy);
    }
  }

  // Fills the ticks behind the last one of `sample` with its values.
  void repeat(int64_t sample) const {
    const EngineSizes& n = s.net.n;
    const int64_t from = (call.used[sample] - 1) * call.batch + sample;
    for (int64_t t = call.used[sample]; t < call.ticks; ++t) {
      const int64_t to = t * call.batch + sample;
      copy(n.classes, call.predictions + from * n.classes, call.predictions + to * n.classes);
      copy(2, call.certainties + from * 2, call.certainties + to * 2);
      if (n.energy) call.energies[to] = call.energies[from];
    }
  }
};

constexpr int kRules = 3;  // of halting, in the order of EngineReason behind the last tick

// Whether row b stops after tick t, and why.
inline EngineReason decide(const Samples& s, const EngineHalt& halt, int64_t t, int64_t b) {
  const float energy = s.energy[b];
  const bool holds[kRules] = {s.certainty[2 * b + 1] >= halt.certainty, energy < halt.energy,
                              t > 0 && std::abs(energy - s.before[b]) < halt.delta};
  s.before[b] = energy;
  EngineReason reason = EngineReason::last_tick;
  for (int rule = kRules; rule-- > 0;) {
    int32_t& streak = s.streak[b * kRules + rule];
    streak = holds[rule] ? streak + 1 : 0;
    if (t + 1 >= halt.min_ticks && streak >= halt.patience) reason = static_cast<EngineReason>(1 + rule);
  }
  return reason;
}

}  // namespace
}  // namespace ctm::CTM_LEVEL
