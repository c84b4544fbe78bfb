// The packed layout of neuron-level models (see nlm.h): sizes, packing, and its transpose for gradients.
// For nlm_cpu.cpp and the engine, compiled with them once per SIMD level.
#pragma once

#include <cmath>

#include "nlm.h"
#include "packed.h"
#include "parallel.h"

namespace ctm::CTM_LEVEL {
namespace {

struct Block {  // one group of `lanes` neurons
  int64_t first;
  int width;  // lanes in use
};

template <class T>
Block block_at(const NlmSizes& n, int64_t index) {
  const int64_t first = index * lanes<T>;
  return {first, part<T>(n.neurons, first)};
}

template <class T>
int64_t block_count(const NlmSizes& n) {
  return (n.neurons + lanes<T> - 1) / lanes<T>;
}

int64_t layer1_vectors(const NlmSizes& n) { return n.hidden * (n.memory + 1) * 2; }
int64_t layer2_vectors(const NlmSizes& n) { return n.deep ? (n.hidden + 1) * 2 : 0; }

template <class T>
int64_t block_elements(const NlmSizes& n) {
  return (layer1_vectors(n) + layer2_vectors(n)) * lanes<T>;
}

template <class T>
int64_t packed_elements(const NlmSizes& n) {
  return kHeader<T> + block_count<T>(n) * block_elements<T>(n);
}

// Calls weight(packed offset, layer, offset in w1 or w2) for every vector of weights of a block, and
// bias(packed offset, layer, offset in b1 or b2, distance of two lanes there) for every vector of biases.
template <class T, class Weight, class Bias>
CTM_INLINE void for_each_vector(const NlmSizes& n, const Block& block, const Weight& weight,
                                const Bias& bias) {
  constexpr int V = lanes<T>;
  const int64_t H = n.hidden, M = n.memory, D = n.neurons, second = layer1_vectors(n) * V;
  for (int64_t h = 0; h < H; ++h)
    for (int64_t half = 0; half < 2; ++half) {
      const int64_t at = (h * (M + 1) * 2 + half) * V, out = half * H + h;
      for (int64_t m = 0; m < M; ++m) weight(at + m * 2 * V, 0, (m * 2 * H + out) * D + block.first);
      bias(at + M * 2 * V, 0, block.first * 2 * H + out, 2 * H);
    }
  for (int64_t half = 0; n.deep && half < 2; ++half) {
    for (int64_t h = 0; h < H; ++h) weight(second + (h * 2 + half) * V, 1, (h * 2 + half) * D + block.first);
    bias(second + (H * 2 + half) * V, 1, block.first * 2 + half, 2);
  }
}

constexpr int64_t kTogether = 4;  // blocks packed at once: their weights are neighbours in w

template <class T>
void pack_typed(const NlmSizes& n, const T* w1, const T* b1, T t1, const T* w2, const T* b2, T t2, T* packed,
                int threads) {
  const T *w[2] = {w1, w2}, *b[2] = {b1, b2}, scale[2] = {T(1) / t1, T(1) / t2};
  const int64_t blocks = block_count<T>(n), size = block_elements<T>(n);
  T* to = new_blocks(packed);
  parallel_for(threads, (blocks + kTogether - 1) / kTogether, [&](int64_t group) {
    const int64_t begin = group * kTogether, end = begin + kTogether < blocks ? begin + kTogether : blocks;
    for_each_vector<T>(
        n, block_at<T>(n, begin),
        [&](int64_t at, int layer, int64_t from) {
          for (int64_t i = begin; i < end; ++i) {
            const T* source = w[layer] + from + (i - begin) * lanes<T>;
            store(to + i * size + at, load_part(source, block_at<T>(n, i).width) * scale[layer]);
          }
        },
        [&](int64_t at, int layer, int64_t from, int64_t step) {
          for (int64_t i = begin; i < end; ++i)
            for (int l = 0; l < lanes<T>; ++l) {
              const bool used = l < block_at<T>(n, i).width;
              to[i * size + at + l] =
                  used ? b[layer][from + ((i - begin) * lanes<T> + l) * step] * scale[layer] : T(0);
            }
        });
  });
}

struct Sum {  // Neumaier's: the gradient of t cancels over all weights of all neurons
  double value = 0.0, rest = 0.0;

  void add(double x) {
    const double next = value + x;
    rest += std::abs(value) >= std::abs(x) ? (value - next) + x : (x - next) + value;
    value = next;
  }
  // NaN and infinity have no rest.
  double total() const { return std::isfinite(value) ? value + rest : value; }
};

// The packed weight is w / t, so dw = dpacked / t and dt = -sum(dpacked * packed) / t.
template <class T>
void unpack_typed(const NlmSizes& n, const T* packed, const T* grad, T t1, T t2, T* w1, T* b1, T* t1_grad,
                  T* w2, T* b2, T* t2_grad, int threads) {
  const int64_t blocks = block_count<T>(n);
  T *w[2] = {w1, w2}, *b[2] = {b1, b2};
  const T t[2] = {t1, t2};
  const Buffer<Sum> partial(2 * blocks);
  const T *own = blocks_of("nlm", packed), *d = grad + kHeader<T>;
  clear(partial.data, 2 * blocks);
  parallel_for(threads, blocks, [&](int64_t index) {
    const Block block = block_at<T>(n, index);
    const int64_t base = index * block_elements<T>(n);
    const auto add = [&](int64_t at, int layer, Vec<T> g) {
      partial.data[2 * index + layer].add(-static_cast<double>(sum_lanes<T>(g * load(own + base + at))));
    };
    for_each_vector<T>(
        n, block,
        [&](int64_t at, int layer, int64_t to) {
          const Vec<T> g = load(d + base + at);
          add(at, layer, g);
          store_part(w[layer] + to, g / t[layer], block.width);
        },
        [&](int64_t at, int layer, int64_t to, int64_t step) {
          const Vec<T> g = load(d + base + at);
          add(at, layer, g);
          for (int l = 0; l < block.width; ++l) b[layer][to + l * step] = g[l] / t[layer];
        });
  });
  Sum sum[2];
  for (int64_t i = 0; i < 2 * blocks; ++i) sum[i % 2].add(partial.data[i].total());
  *t1_grad = static_cast<T>(sum[0].total() / t1);
  if (n.deep) *t2_grad = static_cast<T>(sum[1].total() / t2);
}

}  // namespace
}  // namespace ctm::CTM_LEVEL
