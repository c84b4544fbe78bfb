// Neuron-level models with a LayerNorm before each layer, whose affine part is folded into the weights. For
// the engine alone, compiled with it once per SIMD level.
#pragma once

#include "nlm_tile.h"

namespace ctm::CTM_LEVEL {
namespace {

// In place, (x - mean) / sqrt(variance + eps) over `count` vectors, `step` elements apart: a lane is a
// neuron.
template <class T>
CTM_INLINE void normalise_lanes(int64_t count, int64_t step, T eps, T* x) {
  Vec<T> sum{}, square{};
  for (int64_t i = 0; i < count; ++i) sum += load(x + i * step);
  const Vec<T> mean = sum / static_cast<T>(count);
  for (int64_t i = 0; i < count; ++i) {
    const Vec<T> d = load(x + i * step) - mean;
    square += d * d;
  }
  const Vec<T> deviation = sqrt<T>(square / static_cast<T>(count) + eps);
  for (int64_t i = 0; i < count; ++i) store(x + i * step, (load(x + i * step) - mean) / deviation);
}

// As Tile::forward, for the rows of one tile; eps of each layer.
template <class T, int R, class W>
void normed_forward(const Tile<T, T, R, W>& tile, const T* x, const NlmStrides& s, const T* eps, T* z,
                    int64_t z_row) {
  const NlmSizes& n = tile.n;
  tile.gather(x, s);
  for (int r = 0; r < R; ++r) normalise_lanes(n.memory, R * V<T>, eps[0], tile.input + r * V<T>);
  Vec<T> oa[R], og[R];
  if (n.deep) {
    for (int64_t h = 0; h < n.hidden; ++h) {
      Vec<T> a[1][R], g[1][R];
      tile.layer1(h, a, g);
      for (int r = 0; r < R; ++r) store(tile.hid(h, 0, r), a[0][r] * sigmoid(g[0][r]));
    }
    for (int r = 0; r < R; ++r) normalise_lanes(n.hidden, 2 * R * V<T>, eps[1], tile.hid(0, 0, r));
    tile.begin(tile.w.b2(), oa, og);
    for (int64_t h = 0; h < n.hidden; ++h) {
      const Pair<T> weights = tile.w.w2(h);
      for (int r = 0; r < R; ++r) {
        oa[r] += load(tile.hid(h, 0, r)) * weights.first;
        og[r] += load(tile.hid(h, 0, r)) * weights.second;
      }
    }
    if constexpr (W::scaled) tile.finish(tile.w.s2(), tile.w.b2(), oa, og);
  } else {
    tile.linear(oa, og);
  }
  for (int r = 0; r < R; ++r) tile.store_z(z, z_row, r, oa[r] * sigmoid(og[r]));
}

}  // namespace
}  // namespace ctm::CTM_LEVEL
