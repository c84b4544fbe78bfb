#include "sync.h"

#include "buffer.h"
#include "parallel.h"
#include "sync_rows.h"

// Two layouts of the same recurrence. With few samples one row is worked through pair by pair. With more, a
// vector lane is a sample: pair products need no gather and gradients no scatter, and only the rows of s and
// ds are transposed, square by square. Only the neurons that occur in a pair are read.

namespace ctm::CTM_LEVEL {
namespace {

template <class T>
using Square = Vec<T>[lanes<T>];

constexpr int64_t kGroups = 8;  // fixed partition of a small batch: sums over it do not depend on the threads

// The neurons that occur in a pair. Few are read one by one and renumbered; many are read in whole squares.
struct Neurons {
  Buffer<int32_t> ids, left, right;  // left, right: positions of the pairs' neurons in a group's buffer
  int64_t count = 0;                 // neurons in that buffer
  bool whole;                        // all of them, under their own numbers

  Neurons(const SyncSizes& n, const int32_t* left_ids, const int32_t* right_ids)
      : ids(n.neurons), left(n.pairs), right(n.pairs) {
    const Buffer<int32_t> position(n.neurons);  // 1 + position, 0 where not seen yet
    clear(position.data, n.neurons);
    for (int64_t p = 0; p < n.pairs; ++p) {
      left.data[p] = place(position.data, left_ids[p]);
      right.data[p] = place(position.data, right_ids[p]);
    }
    whole = count * 4 > n.neurons;
    if (!whole) return;
    count = n.neurons;
    copy(n.pairs, left_ids, left.data);
    copy(n.pairs, right_ids, right.data);
  }
  int32_t place(int32_t* position, int32_t id) {
    if (position[id] == 0) {
      ids.data[count] = id;
      position[id] = static_cast<int32_t>(++count);
    }
    return position[id] - 1;
  }
};

// Everything of a backward pass that is the same for all samples.
template <class T>
struct Pass {
  const SyncSizes& n;
  const T* z;
  SyncStrides zs;
  const int32_t *left, *right;
  const T *r, *inverse_root;
  const T *alpha0, *ds;
  T *galpha, *dz;
  SyncStrides dzs;

  // Row of s (or of its gradient) of sample b at tick t, or null where only the last tick has one.
  template <class S>
  S* row(S* s, int64_t t, int64_t b) const {
    if (!n.last) return s + (t * n.batch + b) * n.pairs;
    return t == n.ticks - 1 ? s + b * n.pairs : nullptr;
  }
  const T* activation(int64_t t, int64_t b) const { return z + t * zs.tick + b * zs.row; }
  const T* root(int64_t t) const { return inverse_root + t * n.pairs; }
};

// One sample at a time.

template <class T>
void forward_sample(const Pass<T>& c, int64_t b, T* alpha, T* s) {
  for (int64_t t = 0; t < c.n.ticks; ++t) {
    advance(c.n.pairs, c.activation(t, b), c.left, c.right, c.r, alpha);
    const T* root = c.root(t);
    if (T* out = c.row(s, t, b))
      for (int64_t p = 0; p < c.n.pairs; ++p) out[p] = alpha[p] * root[p];
  }
}

// Reverse scan; sums holds dr (P) and the gradient of 1 / sqrt(beta) (T, P), null to skip both.
template <class T>
void backward_sample(const Pass<T>& c, int64_t b, T* history, T* own_dr, T* sums) {
  const int64_t P = c.n.pairs;
  T* g = c.galpha + b * P;
  if (sums) {
    copy(P, c.alpha0 + b * P, history);
    for (int64_t t = 0; t < c.n.ticks; ++t) {
      copy(P, history + t * P, history + (t + 1) * P);
      advance(P, c.activation(t, b), c.left, c.right, c.r, history + (t + 1) * P);
    }
    clear(own_dr, P);
  }
  for (int64_t t = c.n.ticks - 1; t >= 0; --t) {
    const T *root = c.root(t), *grad = c.row(c.ds, t, b), *z = c.activation(t, b);
    if (grad)
      for (int64_t p = 0; p < P; ++p) g[p] += grad[p] * root[p];
    if (sums) {
      for (int64_t p = 0; p < P; ++p) own_dr[p] += g[p] * history[t * P + p];
      if (grad)
        for (int64_t p = 0; p < P; ++p) sums[(t + 1) * P + p] += grad[p] * history[(t + 1) * P + p];
    }
    if (c.dz) {
      T* out = c.dz + t * c.dzs.tick + b * c.dzs.row;
      for (int64_t p = 0; p < P; ++p) {
        out[c.left[p]] += g[p] * z[c.right[p]];
        out[c.right[p]] += g[p] * z[c.left[p]];
      }
    }
    for (int64_t p = 0; p < P; ++p) g[p] *= c.r[p];
  }
  if (sums)
    for (int64_t p = 0; p < P; ++p) sums[p] += own_dr[p];
}

// One sample a lane.

template <class T>
bool wide(const SyncSizes& n) {
  return n.batch * 2 >= V<T>;
}

template <class T>
struct Group {  // samples [first, first + count), one a lane; lanes beyond hold zeros
  const Pass<T>& c;
  const Neurons& neurons;
  int64_t first;
  int count;

  Group(const Pass<T>& pass, const Neurons& used, int64_t index)
      : c(pass), neurons(used), first(index * V<T>), count(part<T>(pass.n.batch, first)) {}

  // Columns [at, at + width) of the group's rows as lanes: square[i] is column at + i. Null gives zeros.
  CTM_INLINE void read(const T* rows, int64_t stride, int64_t at, int width, Square<T>& square) const {
    for (int b = 0; b < V<T>; ++b)
      square[b] = rows && b < count ? load_part(rows + b * stride + at, width) : Vec<T>{};
    transpose<T>(square);
  }
  template <bool ADD>
  CTM_INLINE void write(Square<T>& square, T* rows, int64_t stride, int64_t at, int width) const {
    transpose<T>(square);
    for (int b = 0; b < count; ++b) {
      T* to = rows + b * stride + at;
      store_part(to, ADD ? square[b] + load_part(to, width) : square[b], width);
    }
  }
  template <class Body>
  static CTM_INLINE void over_squares(int64_t columns, const Body& body) {
    for (int64_t at = 0; at < columns; at += V<T>) body(at, part<T>(columns, at));
  }
  CTM_INLINE T* lane(T* data, int64_t i) const { return data + i * V<T>; }

  void read_all(const T* rows, int64_t stride, int64_t columns, T* to) const {
    over_squares(columns, [&](int64_t at, int width) {
      Square<T> square;
      read(rows, stride, at, width, square);
      for (int i = 0; i < width; ++i) store(lane(to, at + i), square[i]);
    });
  }
  template <bool ADD>
  void write_all(T* from, int64_t columns, T* rows, int64_t stride) const {
    over_squares(columns, [&](int64_t at, int width) {
      Square<T> square = {};
      for (int i = 0; i < width; ++i) square[i] = load(lane(from, at + i));
      write<ADD>(square, rows, stride, at, width);
    });
  }
  void gather(int64_t t, T* to) const {
    if (neurons.whole) return read_all(c.activation(t, first), c.zs.row, c.n.neurons, to);
    for (int b = 0; b < count; ++b) {
      const T* z = c.activation(t, first + b);
      for (int64_t u = 0; u < neurons.count; ++u) to[u * V<T> + b] = z[neurons.ids.data[u]];
    }
  }
  void scatter(int64_t t, T* from) const {
    T* rows = c.dz + t * c.dzs.tick + first * c.dzs.row;
    if (neurons.whole) return write_all<true>(from, c.n.neurons, rows, c.dzs.row);
    for (int b = 0; b < count; ++b)
      for (int64_t u = 0; u < neurons.count; ++u)
        rows[b * c.dzs.row + neurons.ids.data[u]] += from[u * V<T> + b];
  }
  CTM_INLINE Vec<T> product(T* z, int64_t p) const {
    return load(lane(z, neurons.left.data[p])) * load(lane(z, neurons.right.data[p]));
  }

  static int64_t forward_scratch(const Pass<T>& c, const Neurons& neurons) {
    return (neurons.count + c.n.pairs) * V<T>;
  }

  void forward(T* alpha_rows, T* s, T* z) const {
    const int64_t P = c.n.pairs;
    T* alpha = z + neurons.count * V<T>;
    clear(z, neurons.count * V<T>);
    read_all(alpha_rows + first * P, P, P, alpha);
    for (int64_t t = 0; t < c.n.ticks; ++t) {
      gather(t, z);
      T* out = c.row(s, t, first);
      over_squares(P, [&](int64_t p, int width) {
        Square<T> square = {};
        for (int i = 0; i < width; ++i) {
          const Vec<T> next = load(lane(alpha, p + i)) * c.r[p + i] + product(z, p + i);
          store(lane(alpha, p + i), next);
          square[i] = next * c.root(t)[p + i];
        }
        if (out) write<false>(square, out, P, p, width);
      });
    }
    write_all<false>(alpha, P, alpha_rows + first * P, P);
  }

  // history (T + 1, P, lanes): alpha before the first tick and after every one.
  void replay(T* z, T* history) const {
    read_all(c.alpha0 + first * c.n.pairs, c.n.pairs, c.n.pairs, history);
    for (int64_t t = 0; t < c.n.ticks; ++t) {
      gather(t, z);
      T *before = lane(history, t * c.n.pairs), *after = lane(before, c.n.pairs);
      for (int64_t p = 0; p < c.n.pairs; ++p)
        store(lane(after, p), load(lane(before, p)) * c.r[p] + product(z, p));
    }
  }

  static int64_t backward_scratch(const Pass<T>& c, const Neurons& neurons, bool sums) {
    return (2 * neurons.count + c.n.pairs * (sums ? c.n.ticks + 3 : 1)) * V<T>;
  }

  // sums as in backward_sample.
  void backward(T* sums, T* z) const {
    const int64_t P = c.n.pairs, U = neurons.count * V<T>;
    T *dz = z + U, *g = dz + U, *dr = g + P * V<T>, *history = dr + P * V<T>;  // the last two for sums only
    clear(z, U);
    if (sums) {
      clear(dr, P * V<T>);
      replay(z, history);
    }
    read_all(c.galpha + first * P, P, P, g);
    for (int64_t t = c.n.ticks - 1; t >= 0; --t) {
      gather(t, z);
      clear(dz, U);
      const T* grad = c.row(c.ds, t, first);
      over_squares(P, [&](int64_t p, int width) {
        Square<T> square;
        read(grad, P, p, width, square);
        for (int i = 0; i < width; ++i)
          tick(t, p + i, grad ? &square[i] : nullptr, z, dz, g, dr, history, sums);
      });
      if (c.dz) scatter(t, dz);
    }
    write_all<false>(g, P, c.galpha + first * P, P);
    for (int64_t p = 0; sums && p < P; ++p) sums[p] = sum_lanes<T>(load(lane(dr, p)));
  }

  // No gradient is not a gradient of zeros: that would turn an infinite alpha into NaN.
  CTM_INLINE void tick(int64_t t, int64_t p, const Vec<T>* grad, T* z, T* dz, T* g_all, T* dr, T* history,
                       T* sums) const {
    const int64_t P = c.n.pairs;
    Vec<T> g = load(lane(g_all, p));
    if (grad) g += *grad * c.root(t)[p];
    if (sums) store(lane(dr, p), load(lane(dr, p)) + g * load(lane(history, t * P + p)));
    if (sums && grad) sums[(t + 1) * P + p] = sum_lanes<T>(*grad * load(lane(history, (t + 1) * P + p)));
    if (c.dz) {
      const int64_t l = neurons.left.data[p], r = neurons.right.data[p];
      store(lane(dz, l), load(lane(dz, l)) + g * load(lane(z, r)));
      store(lane(dz, r), load(lane(dz, r)) + g * load(lane(z, l)));
    }
    store(lane(g_all, p), g * c.r[p]);
  }
};

template <class T>
int64_t group_count(const SyncSizes& n) {
  return (n.batch + V<T> - 1) / V<T>;
}

template <class T>
void forward(const SyncSizes& n, const T* z, SyncStrides zs, const int32_t* left, const int32_t* right,
             const T* r, const T* inverse_root, T* alpha, T* s, int threads) {
  const Pass<T> pass{n, z, zs, left, right, r, inverse_root, nullptr, nullptr, nullptr, nullptr, {0, 0}};
  const int team = n.batch * n.ticks * n.pairs < 16384 ? 1 : threads;
  if (wide<T>(n)) {
    const Neurons neurons(n, left, right);
    parallel_for<T>(team, group_count<T>(n), Group<T>::forward_scratch(pass, neurons),
                    [&](int64_t i, T* scratch) { Group<T>(pass, neurons, i).forward(alpha, s, scratch); });
  } else {
    parallel_for(team, n.batch, [&](int64_t b) { forward_sample(pass, b, alpha + b * n.pairs, s); });
  }
}

// d(1/sqrt(beta)) / dbeta = -1/2 beta^-3/2, and beta_t = r beta_{t-1} + 1.
template <class T>
void root_gradient(const SyncSizes& n, const T* r, const T* inverse_root, const T* beta0, double* sums, T* dr,
                   T* dbeta) {
  const int64_t P = n.pairs;
  const Buffer<double> state(P);
  double* g = state.data;
  for (int64_t p = 0; p < P; ++p) g[p] = dbeta[p];
  for (int64_t t = n.ticks - 1; t >= 0; --t) {
    const T *root = inverse_root + t * P, *before = root - P;
    const double* at = sums + (t + 1) * P;
    for (int64_t p = 0; p < P; ++p) {
      const double value = root[p], previous = t ? before[p] : 0.0;
      g[p] -= 0.5 * value * value * value * at[p];
      sums[p] += g[p] * (t ? 1.0 / (previous * previous) : static_cast<double>(beta0[p]));
      g[p] *= r[p];
    }
  }
  for (int64_t p = 0; p < P; ++p) {
    dr[p] = static_cast<T>(sums[p]);
    dbeta[p] = static_cast<T>(g[p]);
  }
}

template <class T>
void backward(const SyncSizes& n, const T* z, SyncStrides zs, const int32_t* left, const int32_t* right,
              const T* r, const T* inverse_root, const T* alpha0, const T* beta0, const T* ds, T* galpha,
              T* dz, SyncStrides dzs, T* dr, T* dbeta, int threads) {
  const Pass<T> pass{n, z, zs, left, right, r, inverse_root, alpha0, ds, galpha, dz, dzs};
  const int64_t P = n.pairs, T_ = n.ticks;
  const bool lanes_are_samples = wide<T>(n);
  const int64_t groups = lanes_are_samples ? group_count<T>(n) : n.batch < kGroups ? n.batch : kGroups;
  const int64_t sums = dr ? P * (T_ + 1) : 0;
  const Buffer<T> buffer(groups * sums);
  clear(buffer.data, groups * sums);
  const int team = n.batch * n.ticks * n.pairs < 16384 ? 1 : threads;
  if (lanes_are_samples) {
    const Neurons neurons(n, left, right);
    parallel_for<T>(team, groups, Group<T>::backward_scratch(pass, neurons, dr != nullptr),
                    [&](int64_t i, T* scratch) {
                      Group<T>(pass, neurons, i).backward(dr ? buffer.data + i * sums : nullptr, scratch);
                    });
  } else {
    parallel_for<T>(team, groups, dr ? P * (T_ + 2) : 0, [&](int64_t i, T* history) {
      for (int64_t b = i * n.batch / groups; b < (i + 1) * n.batch / groups; ++b)
        backward_sample(pass, b, history, history + P * (T_ + 1), dr ? buffer.data + i * sums : nullptr);
    });
  }
  if (!dr) return;
  const Buffer<double> total(sums);
  clear(total.data, sums);
  for (int64_t group = 0; group < groups; ++group)
    for (int64_t i = 0; i < sums; ++i) total.data[i] += static_cast<double>(buffer.data[group * sums + i]);
  root_gradient(n, r, inverse_root, beta0, total.data, dr, dbeta);
}

template <class T>
constexpr SyncTable<T> table = {roots<T>, forward<T>, backward<T>};

}  // namespace

extern const SyncKernels sync_kernels = {table<float>, table<double>};

}  // namespace ctm::CTM_LEVEL
