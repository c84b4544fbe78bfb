// Neuron-level models of a few rows at once (see nlm.h): one register tile, forward and backward, with its
// dropout masks. For nlm_cpu.cpp and the engine, compiled with them once per SIMD level.
#pragma once

#include "narrow.h"
#include "nlm.h"
#include "nlm_layout.h"

namespace ctm::CTM_LEVEL {
namespace {

template <class T>
struct Masks {
  Dropout drop;
  int64_t first_row;
  uint32_t stride;  // neurons

  Masks(const NlmSizes& n, const DropoutRows& d)
      : drop(d.p, d.seed), first_row(d.first_row), stride(static_cast<uint32_t>(n.neurons)) {}
  bool on() const { return drop.on(); }
  // `slot` is m for an input and M + h for a hidden activation.
  CTM_INLINE uint32_t key(int64_t row) const {
    return row_key(drop.seed, static_cast<uint64_t>(first_row + row));
  }
  CTM_INLINE Vec<T> at(uint32_t key, int64_t slot, int64_t neuron) const {
    return keep_mask<T>(drop, key, static_cast<uint32_t>(slot) * stride + static_cast<uint32_t>(neuron));
  }
};

// Distance at which weights are prefetched: the gates between two hidden units stall the hardware's own
// stream.
template <class T>
constexpr int64_t kAhead = 4096 / static_cast<int64_t>(sizeof(T));

// The weights of one block as they are packed for training. Pairs are the halves of a gated unit.
template <class T>
struct BlockWeights {
  const NlmSizes& n;
  const T* data;

  static constexpr bool scaled = false;

  CTM_INLINE const T* layer1(int64_t h) const { return data + h * (n.memory + 1) * 2 * V<T>; }
  CTM_INLINE Pair<T> w1(int64_t h, int64_t m) const { return load_pair(layer1(h) + m * 2 * V<T>); }
  CTM_INLINE Pair<T> b1(int64_t h) const { return w1(h, n.memory); }
  CTM_INLINE Pair<T> w2(int64_t h) const { return load_pair(data + (layer1_vectors(n) + h * 2) * V<T>); }
  CTM_INLINE Pair<T> b2() const { return w2(n.hidden); }
  CTM_INLINE void prefetch(int64_t h, int64_t m) const {
    const T* at = layer1(h) + m * 2 * V<T> + kAhead<T>;
    __builtin_prefetch(at);
    __builtin_prefetch(at + V<T>);
  }
};

// The rows of one register tile of one block. Scratch: input [M][R], then for the backward hidden [H][2][R].
template <class T, class X, int R, class W = BlockWeights<T>>
struct Tile {
  const NlmSizes& n;
  const Masks<T>& masks;
  W w;
  Block block;
  int64_t row;
  T* input;
  T* hidden;
  uint32_t keys[R];  // of the rows' dropout masks

  static constexpr int V = lanes<T>;
  // Hidden units at once: those of a row or two hide each other's latency.
  static constexpr int kUnits = R < 4 ? 4 / R : 1;

  CTM_INLINE Tile(const NlmSizes& n_, const Masks<T>& masks_, const W& w_, Block block_, int64_t row_,
                  T* scratch)
      : n(n_),
        masks(masks_),
        w(w_),
        block(block_),
        row(row_),
        input(scratch),
        hidden(scratch + n_.memory * R * V) {
    for (int r = 0; r < R; ++r) keys[r] = masks.on() ? masks.key(row + r) : 0;
  }

  CTM_INLINE Vec<T> in(int64_t m, int r) const { return load(input + (m * R + r) * V); }
  CTM_INLINE T* hid(int64_t h, int half, int r) const { return hidden + ((h * 2 + half) * R + r) * V; }

  CTM_INLINE void gather(const X* x, const NlmStrides& s) const {
    const X* base = x + row * s.row + block.first * s.neuron;
    if (s.neuron == 1 && block.width == V) {
      for (int64_t m = 0; m < n.memory; ++m)
        for (int r = 0; r < R; ++r) {
          const X* from = base + r * s.row + m * s.memory;
          T* to = input + (m * R + r) * V;
          for (int l = 0; l < V; ++l) to[l] = widen(from[l]);
        }
    } else {
      for (int r = 0; r < R; ++r)
        for (int l = 0; l < V; ++l)
          for (int64_t m = 0; m < n.memory; ++m)
            input[(m * R + r) * V + l] =
                l < block.width ? widen(base[r * s.row + l * s.neuron + m * s.memory]) : T(0);
    }
    if (masks.on())
      for (int64_t m = 0; m < n.memory; ++m)
        for (int r = 0; r < R; ++r)
          store(input + (m * R + r) * V, in(m, r) * masks.at(keys[r], m, block.first));
  }

  // u = x w1 + b1 of hidden units h, ..., h + U - 1: the two halves for all rows of the tile.
  template <int U>
  CTM_INLINE void layer1(int64_t h, Vec<T> (&a)[U][R], Vec<T> (&g)[U][R]) const {
    CTM_UNROLL for (int u = 0; u < U; ++u) begin(w.b1(h + u), a[u], g[u]);
    for (int64_t m = 0; m < n.memory; ++m) {
      Pair<T> weights[U];
      CTM_UNROLL for (int u = 0; u < U; ++u) {
        w.prefetch(h + u, m);
        weights[u] = w.w1(h + u, m);
      }
      CTM_UNROLL for (int r = 0; r < R; ++r) {
        const Vec<T> x = in(m, r);
        CTM_UNROLL for (int u = 0; u < U; ++u) {
          a[u][r] += x * weights[u].first;
          g[u][r] += x * weights[u].second;
        }
      }
    }
    if constexpr (W::scaled)
      CTM_UNROLL for (int u = 0; u < U; ++u) finish(w.s1(h + u), w.b1(h + u), a[u], g[u]);
  }

  // Sums start from their bias; those of scaled weights are scaled before it is added.
  CTM_INLINE static void begin(const Pair<T>& bias, Vec<T> (&a)[R], Vec<T> (&g)[R]) {
    CTM_UNROLL for (int r = 0; r < R; ++r) {
      a[r] = W::scaled ? Vec<T>{} : bias.first;
      g[r] = W::scaled ? Vec<T>{} : bias.second;
    }
  }
  CTM_INLINE static void finish(const Pair<T>& scale, const Pair<T>& bias, Vec<T> (&a)[R], Vec<T> (&g)[R]) {
    CTM_UNROLL for (int r = 0; r < R; ++r) {
      a[r] = a[r] * scale.first + bias.first;
      g[r] = g[r] * scale.second + bias.second;
    }
  }

  CTM_INLINE void store_z(X* z, int64_t z_row, int r, Vec<T> value) const {
    X* to = z + (row + r) * z_row + block.first;
    for (int l = 0; l < V; ++l)
      if (l < block.width) narrow(value[l], to + l);
  }

  // Both layers up to o. With KEEP, leaves a and sigmoid(g) of every hidden unit in `hidden` for the
  // backward.
  template <bool KEEP>
  CTM_INLINE void layers(Vec<T> (&oa)[R], Vec<T> (&og)[R]) const {
    if (!n.deep) return linear(oa, og);
    begin(w.b2(), oa, og);
    int64_t h = 0;
    for (; h + kUnits <= n.hidden; h += kUnits) units<KEEP, kUnits>(h, oa, og);
    if constexpr (kUnits > 1)
      for (; h < n.hidden; ++h) units<KEEP, 1>(h, oa, og);
    if constexpr (W::scaled) finish(w.s2(), w.b2(), oa, og);
  }

  CTM_INLINE void linear(Vec<T> (&oa)[R], Vec<T> (&og)[R]) const {
    Vec<T> a[1][R], g[1][R];
    layer1(0, a, g);
    CTM_UNROLL for (int r = 0; r < R; ++r) oa[r] = a[0][r], og[r] = g[0][r];
  }

  // Adds what hidden units h, ..., h + U - 1 give to o.
  template <bool KEEP, int U>
  CTM_INLINE void units(int64_t h, Vec<T> (&oa)[R], Vec<T> (&og)[R]) const {
    Vec<T> a[U][R], g[U][R];
    layer1(h, a, g);
    CTM_UNROLL for (int u = 0; u < U; ++u) {
      const Pair<T> weights = w.w2(h + u);
      CTM_UNROLL for (int r = 0; r < R; ++r) {
        const Vec<T> gate = sigmoid(g[u][r]);
        if constexpr (KEEP) {
          store(hid(h + u, 0, r), a[u][r]);
          store(hid(h + u, 1, r), gate);
        }
        Vec<T> value = a[u][r] * gate;
        if (masks.on()) value *= masks.at(keys[r], n.memory + h + u, block.first);
        oa[r] += value * weights.first;
        og[r] += value * weights.second;
      }
    }
  }

  // A call of its own: inlined into every tile size it would be compiled with the caller's register pressure.
  __attribute__((noinline)) void forward(const X* x, const NlmStrides& s, X* z, int64_t z_row) const {
    gather(x, s);
    Vec<T> oa[R], og[R];
    layers<false>(oa, og);
    CTM_UNROLL for (int r = 0; r < R; ++r) store_z(z, z_row, r, oa[r] * sigmoid(og[r]));
  }

  // Gradient of the hidden pre-activations, written over `hidden`; accumulates the second layer's gradients.
  CTM_INLINE void hidden_gradient(const T* dz, int64_t dz_row, T* dw) const {
    Vec<T> oa[R], og[R];
    layers<true>(oa, og);
    CTM_UNROLL for (int r = 0; r < R; ++r) {
      const Vec<T> grad = load_part(dz + (row + r) * dz_row + block.first, block.width);
      const Vec<T> gate = sigmoid(og[r]);
      og[r] = grad * oa[r] * gate * (T(1) - gate);
      oa[r] = grad * gate;
      if (!n.deep) {
        store(hid(0, 0, r), oa[r]);
        store(hid(0, 1, r), og[r]);
      }
    }
    if (!n.deep) return;
    T* dw2 = dw ? dw + layer1_vectors(n) * V : nullptr;
    for (int64_t h = 0; h < n.hidden; ++h) {
      const Pair<T> weights = w.w2(h);
      Vec<T> dwa{}, dwg{};
      CTM_UNROLL for (int r = 0; r < R; ++r) {
        const Vec<T> a = load(hid(h, 0, r)), gate = load(hid(h, 1, r));
        Vec<T> value = a * gate, grad = oa[r] * weights.first + og[r] * weights.second;
        if (masks.on()) {
          const Vec<T> keep = masks.at(keys[r], n.memory + h, block.first);
          value *= keep;
          grad *= keep;
        }
        dwa += value * oa[r];
        dwg += value * og[r];
        store(hid(h, 0, r), grad * gate);
        store(hid(h, 1, r), grad * a * gate * (T(1) - gate));
      }
      if (dw2) {
        store(dw2 + h * 2 * V, load(dw2 + h * 2 * V) + dwa);
        store(dw2 + (h * 2 + 1) * V, load(dw2 + (h * 2 + 1) * V) + dwg);
      }
    }
    if (!dw2) return;
    T* bias = dw2 + n.hidden * 2 * V;
    Vec<T> dba = load(bias), dbg = load(bias + V);
    CTM_UNROLL for (int r = 0; r < R; ++r) dba += oa[r], dbg += og[r];
    store(bias, dba);
    store(bias + V, dbg);
  }

  // dw1[h][m] += sum over rows of du[h] * x[m].
  CTM_INLINE void weight_gradient(T* dw) const {
    for (int64_t h = 0; h < n.hidden; ++h) {
      T* out = dw + h * (n.memory + 1) * 2 * V;
      Vec<T> da[R], dg[R];
      CTM_UNROLL for (int r = 0; r < R; ++r) da[r] = load(hid(h, 0, r)), dg[r] = load(hid(h, 1, r));
      for (int64_t m = 0; m < n.memory; ++m) {
        Vec<T> wa = load(out + m * 2 * V), wg = load(out + (m * 2 + 1) * V);
        CTM_UNROLL for (int r = 0; r < R; ++r) {
          const Vec<T> x = in(m, r);
          wa += da[r] * x;
          wg += dg[r] * x;
        }
        store(out + m * 2 * V, wa);
        store(out + (m * 2 + 1) * V, wg);
      }
      Vec<T> ba = load(out + n.memory * 2 * V), bg = load(out + (n.memory * 2 + 1) * V);
      CTM_UNROLL for (int r = 0; r < R; ++r) ba += da[r], bg += dg[r];
      store(out + n.memory * 2 * V, ba);
      store(out + (n.memory * 2 + 1) * V, bg);
    }
  }

  CTM_INLINE void add_dx(T* dx, const NlmStrides& s, int64_t m, int r, Vec<T> value) const {
    if (masks.on()) value *= masks.at(keys[r], m, block.first);
    T* to = dx + (row + r) * s.row + block.first * s.neuron + m * s.memory;
    if (s.neuron == 1) {
      store_part(to, load_part(to, block.width) + value, block.width);
    } else {
      for (int l = 0; l < block.width; ++l) to[l * s.neuron] += value[l];
    }
  }

  // dx[m] += sum over h of da[h] * wa[h][m] + dg[h] * wg[h][m], for G rows and S steps of memory at once.
  template <int G, int S>
  CTM_INLINE void input_gradient_part(T* dx, const NlmStrides& s, int r0, int64_t m0) const {
    Vec<T> sum[G][S] = {};
    for (int64_t h = 0; h < n.hidden; ++h) {
      const T* weights = w.layer1(h) + m0 * 2 * V;
      CTM_UNROLL for (int j = 0; j < S; ++j) {
        const Vec<T> wa = load(weights + j * 2 * V), wg = load(weights + (j * 2 + 1) * V);
        CTM_UNROLL for (int r = 0; r < G; ++r) {
          sum[r][j] += load(hid(h, 0, r0 + r)) * wa;
          sum[r][j] += load(hid(h, 1, r0 + r)) * wg;
        }
      }
    }
    for (int r = 0; r < G; ++r)
      for (int j = 0; j < S; ++j) add_dx(dx, s, m0 + j, r0 + r, sum[r][j]);
  }

  CTM_INLINE void input_gradient(T* dx, const NlmStrides& s) const {
    constexpr int G = R < CTM_ROWS / 2 ? R : CTM_ROWS / 2;
    for (int r0 = 0; r0 < R; r0 += G) {
      int64_t m = 0;
      for (; m + 4 <= n.memory; m += 4) input_gradient_part<G, 4>(dx, s, r0, m);
      for (; m < n.memory; ++m) input_gradient_part<G, 1>(dx, s, r0, m);
    }
  }

  __attribute__((noinline)) void backward(const X* x, const NlmStrides& s, const T* dz, int64_t dz_row, T* dx,
                                          const NlmStrides& dx_strides, T* dw) const {
    gather(x, s);
    hidden_gradient(dz, dz_row, dw);
    if (dw) weight_gradient(dw);
    if (dx) input_gradient(dx, dx_strides);
  }
};

// Calls run(Tile) for tiles of R, R/2, ..., 1 rows until rows [row, end) are done.
template <class T, class X, int R, class W, class Run>
CTM_INLINE void for_each_tile(const NlmSizes& n, const Masks<T>& masks, const W& w, const Block& block,
                              T* scratch, int64_t row, int64_t end, const Run& run) {
  for (; row + R <= end; row += R) run(Tile<T, X, R, W>(n, masks, w, block, row, scratch));
  if constexpr (R > 1) for_each_tile<T, X, R / 2>(n, masks, w, block, scratch, row, end, run);
}

}  // namespace
}  // namespace ctm::CTM_LEVEL
