// Neuron-level models with weights of bfloat16 or int8. For the engine alone, compiled with it once per SIMD
// level.
#pragma once

#include "nlm_tile.h"

namespace ctm::CTM_LEVEL {
namespace {

// The weights of one block: [H][M] pairs of a | g, then for deep models [H] pairs. In float32 for every
// hidden unit and the output: pairs of biases, and of scales where the weights have them.
template <class W>
struct NarrowWeights {
  const NlmSizes& n;
  const W* data;
  const float* affine;

  static constexpr bool scaled = kScaled<W>;
  static constexpr int64_t kPair = 2 * V<float>, kAffine = (scaled ? 2 : 1) * kPair;

  static int64_t elements(const NlmSizes& n) { return n.hidden * (n.memory + (n.deep ? 1 : 0)) * kPair; }
  static int64_t affine_elements(const NlmSizes& n) { return (n.hidden + (n.deep ? 1 : 0)) * kAffine; }

  CTM_INLINE const W* at(int64_t h, int64_t m) const { return data + (h * n.memory + m) * kPair; }
  CTM_INLINE Pair<float> w1(int64_t h, int64_t m) const { return load_pair(at(h, m)); }
  CTM_INLINE Pair<float> w2(int64_t h) const { return load_pair(at(n.hidden, 0) + h * kPair); }
  CTM_INLINE Pair<float> b1(int64_t h) const { return load_pair(affine + h * kAffine); }
  CTM_INLINE Pair<float> b2() const { return b1(n.hidden); }
  CTM_INLINE Pair<float> s1(int64_t h) const { return load_pair(affine + h * kAffine + kPair); }
  CTM_INLINE Pair<float> s2() const { return s1(n.hidden); }
  CTM_INLINE void prefetch(int64_t h, int64_t m) const { __builtin_prefetch(at(h, m) + kAhead<W>); }
};

// One layer's weights (inputs, 2 units, D), biases (D, 2 units) and, if scaled, scales (2 units, D).
template <class W>
struct NarrowLayer {
  const W* weights;
  const float *biases, *scales;
  int64_t inputs, units;
};

template <class W>
void pack_narrow_layer(const NarrowLayer<W>& from, int64_t neurons, const Block& block, W* to,
                       float* affine) {
  constexpr int P = 2 * V<float>;
  const int64_t outputs = 2 * from.units;
  for (int64_t u = 0; u < from.units; ++u, affine += NarrowWeights<W>::kAffine)
    for (int l = 0; l < P; ++l) {
      const int64_t out = l / V<float> * from.units + u, neuron = block.first + l % V<float>;
      const bool used = l % V<float> < block.width;
      for (int64_t i = 0; i < from.inputs; ++i)
        to[(u * from.inputs + i) * P + slot<W>(l)] =
            used ? from.weights[(i * outputs + out) * neurons + neuron] : W{};
      affine[l] = used ? from.biases[neuron * outputs + out] : 0.0f;
      if constexpr (kScaled<W>) affine[P + l] = used ? from.scales[out * neurons + neuron] : 0.0f;
    }
}

// Both layers of all blocks.
template <class W>
void pack_narrow(const NlmSizes& n, const NarrowLayer<W>& first, const NarrowLayer<W>& second, W* data,
                 float* affine) {
  using Block_ = NarrowWeights<W>;
  for (int64_t i = 0; i < block_count<float>(n); ++i) {
    const Block block = block_at<float>(n, i);
    W* to = data + i * Block_::elements(n);
    float* rest = affine + i * Block_::affine_elements(n);
    pack_narrow_layer(first, n.neurons, block, to, rest);
    if (n.deep)
      pack_narrow_layer(second, n.neurons, block, to + n.hidden * n.memory * Block_::kPair,
                        rest + n.hidden * Block_::kAffine);
  }
}

}  // namespace
}  // namespace ctm::CTM_LEVEL
