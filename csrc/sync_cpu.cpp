#include "sync.h"

#include <cstdlib>

#include "parallel.h"
#include "simd.h"

namespace ctm::CTM_LEVEL {
namespace {

constexpr int64_t kGroups = 8;  // fixed partition of the batch: the sums over it do not depend on the threads

template <class T>
void roots(const SyncSizes& n, const T* r, const T* beta0, T* beta, T* inverse_root) {
  for (int64_t p = 0; p < n.pairs; ++p) beta[p] = beta0[p];
  for (int64_t t = 0; t < n.ticks; ++t)
    for (int64_t p = 0; p < n.pairs; ++p) {
      beta[p] = r[p] * beta[p] + T(1);
      inverse_root[t * n.pairs + p] = T(1) / std::sqrt(beta[p]);
    }
}

// alpha = r alpha + z[left] z[right] over all pairs of one (tick, batch) row.
template <class T>
CTM_INLINE void advance(int64_t pairs, const T* __restrict z, const int32_t* __restrict left,
                        const int32_t* __restrict right, const T* __restrict r, T* __restrict alpha) {
  for (int64_t p = 0; p < pairs; ++p) alpha[p] = r[p] * alpha[p] + z[left[p]] * z[right[p]];
}

template <class T>
CTM_INLINE void multiply(int64_t pairs, const T* __restrict a, const T* __restrict b, T* __restrict out) {
  for (int64_t p = 0; p < pairs; ++p) out[p] = a[p] * b[p];
}

template <class T>
void forward(const SyncSizes& n, const T* z, SyncStrides zs, const int32_t* left, const int32_t* right, const T* r,
             const T* inverse_root, T* alpha, T* s, int threads) {
  parallel_for(n.batch * n.ticks * n.pairs < 16384 ? 1 : threads, n.batch, [&](int64_t b) {
    T* state = alpha + b * n.pairs;
    for (int64_t t = 0; t < n.ticks; ++t) {
      advance(n.pairs, z + t * zs.tick + b * zs.row, left, right, r, state);
      const T* root = inverse_root + t * n.pairs;
      if (!n.last) multiply(n.pairs, state, root, s + (t * n.batch + b) * n.pairs);
      if (n.last && t == n.ticks - 1) multiply(n.pairs, state, root, s + b * n.pairs);
    }
  });
}

template <class T>
struct Backward {
  const SyncSizes& n;
  const T *z, *r, *inverse_root, *alpha0, *ds;
  SyncStrides zs;
  const int32_t *left, *right;
  T *galpha, *dz;
  SyncStrides dzs;

  // The gradient of s at (t, b), or null where it is zero.
  const T* gradient(int64_t t, int64_t b) const {
    if (!n.last) return ds + (t * n.batch + b) * n.pairs;
    return t == n.ticks - 1 ? ds + b * n.pairs : nullptr;
  }

  // history (T + 1, P): alpha_{-1} ... alpha_{T-1} of sample b.
  void replay(int64_t b, T* history) const {
    std::memcpy(history, alpha0 + b * n.pairs, sizeof(T) * n.pairs);
    for (int64_t t = 0; t < n.ticks; ++t) {
      T* next = history + (t + 1) * n.pairs;
      std::memcpy(next, next - n.pairs, sizeof(T) * n.pairs);
      advance(n.pairs, z + t * zs.tick + b * zs.row, left, right, r, next);
    }
  }

  void scatter(int64_t t, int64_t b, const T* g) const {
    const T* row = z + t * zs.tick + b * zs.row;
    T* out = dz + t * dzs.tick + b * dzs.row;
    for (int64_t p = 0; p < n.pairs; ++p) {
      const T value = g[p];
      out[left[p]] += value * row[right[p]];
      out[right[p]] += value * row[left[p]];
    }
  }

  // Reverse scan of one sample; group_dr (P) and group_root (T, P) collect sums over the batch, null to skip.
  void sample(int64_t b, T* history, T* sum_dr, T* group_dr, T* group_root) const {
    T* g = galpha + b * n.pairs;
    if (group_dr) {
      replay(b, history);
      std::memset(sum_dr, 0, sizeof(T) * n.pairs);
    }
    for (int64_t t = n.ticks - 1; t >= 0; --t) {
      const T* root = inverse_root + t * n.pairs;
      const T* grad = gradient(t, b);
      if (grad)
        for (int64_t p = 0; p < n.pairs; ++p) g[p] += grad[p] * root[p];
      if (group_dr) {
        const T *before = history + t * n.pairs, *after = before + n.pairs;
        T* out = group_root + t * n.pairs;
        for (int64_t p = 0; p < n.pairs; ++p) sum_dr[p] += g[p] * before[p];
        if (grad)
          for (int64_t p = 0; p < n.pairs; ++p) out[p] += grad[p] * after[p];
      }
      if (dz) scatter(t, b, g);
      for (int64_t p = 0; p < n.pairs; ++p) g[p] *= r[p];
    }
    if (group_dr)
      for (int64_t p = 0; p < n.pairs; ++p) group_dr[p] += sum_dr[p];
  }
};

// d(1/sqrt(beta)) / dbeta = -1/2 beta^-3/2, and beta_t = r beta_{t-1} + 1.
template <class T>
void root_gradient(const SyncSizes& n, const T* r, const T* inverse_root, const T* beta0, const double* sums, T* dr,
                   T* dbeta) {
  const int64_t P = n.pairs;
  const double* group_root = sums + P;
  for (int64_t p = 0; p < P; ++p) {
    double g = dbeta[p], total = sums[p];
    for (int64_t t = n.ticks - 1; t >= 0; --t) {
      const double root = inverse_root[t * P + p];
      g -= 0.5 * root * root * root * group_root[t * P + p];
      const double before = t ? inverse_root[(t - 1) * P + p] : 0.0;
      total += g * (t ? 1.0 / (before * before) : static_cast<double>(beta0[p]));
      g *= r[p];
    }
    dr[p] = static_cast<T>(total);
    dbeta[p] = static_cast<T>(g);
  }
}

template <class T>
void backward(const SyncSizes& n, const T* z, SyncStrides zs, const int32_t* left, const int32_t* right, const T* r,
              const T* inverse_root, const T* alpha0, const T* beta0, const T* ds, T* galpha, T* dz, SyncStrides dzs,
              T* dr, T* dbeta, int threads) {
  const Backward<T> pass{n, z, r, inverse_root, alpha0, ds, zs, left, right, galpha, dz, dzs};
  if (!dr) {
    parallel_for(threads, n.batch, [&](int64_t b) { pass.sample(b, nullptr, nullptr, nullptr, nullptr); });
    return;
  }
  const int64_t P = n.pairs, sums = P * (n.ticks + 1), scratch = sums + P * (n.ticks + 2);
  const int64_t groups = n.batch < kGroups ? n.batch : kGroups;
  T* buffer = static_cast<T*>(std::calloc(groups * scratch + 1, sizeof(T)));
  parallel_for(threads, groups, [&](int64_t group) {
    T* own = buffer + group * scratch;
    T* history = own + sums;
    for (int64_t b = group * n.batch / groups; b < (group + 1) * n.batch / groups; ++b)
      pass.sample(b, history, history + P * (n.ticks + 1), own, own + P);
  });
  double* total = static_cast<double*>(std::calloc(sums + 1, sizeof(double)));
  for (int64_t group = 0; group < groups; ++group)
    for (int64_t i = 0; i < sums; ++i) total[i] += static_cast<double>(buffer[group * scratch + i]);
  root_gradient(n, r, inverse_root, beta0, total, dr, dbeta);
  std::free(total);
  std::free(buffer);
}

template <class T>
constexpr SyncTable<T> table = {roots<T>, forward<T>, backward<T>};

}  // namespace

extern const SyncKernels sync_kernels = {table<float>, table<double>};

}  // namespace ctm::CTM_LEVEL
