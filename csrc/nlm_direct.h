// The forward of neuron-level models on weights as they come (see nlm.h): neurons are innermost there too, so
// a vector of them is read where it lies. For nlm_cpu.cpp alone, compiled with it once per SIMD level.
#pragma once

#include "nlm_tile.h"

namespace ctm::CTM_LEVEL {
namespace {

template <class T>
struct Unpacked {
  const T *w1, *b1, *w2, *b2;
  T scale1, scale2;
};

// One row of N neighbouring blocks on unpacked weights, in the order of sums of Tile::layers. Scratch:
// N inputs [M], then the hidden pre-activations [2H][N].
template <class T, class X, int N>
struct Direct {
  const NlmSizes& n;
  const Masks<T>& masks;
  const Unpacked<T>& p;
  int64_t first;  // block
  T* scratch;

  static constexpr int V = lanes<T>;

  CTM_INLINE Tile<T, X, 1> tile(int i, int64_t row) const {
    return {n, masks, {n, nullptr}, block_at<T>(n, first + i), row, scratch + i * n.memory * V};
  }
  CTM_INLINE T* unit(int64_t out, int i) const { return scratch + (N * (n.memory + out) + i) * V; }

  // Up to `left` weights, times their scale.
  static CTM_INLINE Vec<T> scaled(const T* w, int64_t left, T scale) {
    return load_part(w, part<T>(left, 0)) * scale;
  }

  // unit[out] = b1, a square of neurons and outputs at a time.
  CTM_INLINE void biases(int i, const Block& block) const {
    const int64_t outputs = 2 * n.hidden;
    for (int64_t out = 0; out < outputs; out += V) {
      Vec<T> square[V] = {};
      const int used = part<T>(outputs, out);
      for (int l = 0; l < block.width; ++l)
        square[l] = scaled(p.b1 + (block.first + l) * outputs + out, used, p.scale1);
      transpose<T>(square);
      for (int o = 0; o < used; ++o) store(unit(out + o, i), square[o]);
    }
  }

  CTM_INLINE void layer1(int64_t left) const {
    for (int64_t m = 0; m < n.memory; ++m) {
      Vec<T> x[N];
      for (int i = 0; i < N; ++i) x[i] = load(scratch + (i * n.memory + m) * V);
      const T* w = p.w1 + m * 2 * n.hidden * n.neurons + first * V;
      for (int64_t out = 0; out < 2 * n.hidden; ++out, w += n.neurons)
        CTM_UNROLL for (int i = 0; i < N; ++i)
            store(unit(out, i), load(unit(out, i)) + x[i] * scaled(w + i * V, left - i * V, p.scale1));
    }
  }

  CTM_INLINE Vec<T> layer2(const Tile<T, X, 1>& tile, int i) const {
    Vec<T> a = load(unit(0, i)), g = load(unit(n.hidden, i));
    if (!n.deep) return a * sigmoid(g);
    T bias[2][V] = {};
    for (int l = 0; l < tile.block.width; ++l)
      for (int half = 0; half < 2; ++half) bias[half][l] = p.b2[(tile.block.first + l) * 2 + half] * p.scale2;
    Vec<T> oa = load(bias[0]), og = load(bias[1]);
    for (int64_t h = 0; h < n.hidden; ++h) {
      a = load(unit(h, i)), g = load(unit(n.hidden + h, i));
      Vec<T> value = a * sigmoid(g);
      if (masks.on()) value *= masks.at(tile.keys[0], n.memory + h, tile.block.first);
      const T* w = p.w2 + h * 2 * n.neurons + tile.block.first;
      oa += value * scaled(w, tile.block.width, p.scale2);
      og += value * scaled(w + n.neurons, tile.block.width, p.scale2);
    }
    return oa * sigmoid(og);
  }

  void run(const X* x, const NlmStrides& s, X* z, int64_t z_row) const {
    for (int64_t row = 0; row < n.rows; ++row) {
      for (int i = 0; i < N; ++i) {
        tile(i, row).gather(x, s);
        biases(i, block_at<T>(n, first + i));
      }
      layer1(n.neurons - first * V);
      for (int i = 0; i < N; ++i) tile(i, row).store_z(z, z_row, 0, layer2(tile(i, row), i));
    }
  }
};

}  // namespace
}  // namespace ctm::CTM_LEVEL
