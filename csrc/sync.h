// Synchronisation with decay (arXiv 2505.05522, section 3.4): P neuron pairs, T ticks.
//
//   alpha_t = r alpha_{t-1} + z_t[left] z_t[right],   beta_t = r beta_{t-1} + 1,   s_t = alpha_t /
//   sqrt(beta_t)
//
// beta does not depend on the data, so it has no batch dimension. r = exp(-decay), (P).
// z[t][b][d] lies at z + t * z_tick + b * z_row + d. Index values are in range: the caller has checked them.
#pragma once

#include <cstdint>

namespace ctm {

struct SyncSizes {
  int64_t ticks, batch, neurons, pairs;
  bool last;  // s (and its gradient) holds the last tick only
};

struct SyncStrides {
  int64_t tick, row;
};

template <class T>
struct SyncTable {
  // inverse_root (T, P) = 1 / sqrt(beta_t), from beta0 (P); writes beta_T to beta (P).
  void (*roots)(const SyncSizes&, const T* r, const T* beta0, T* beta, T* inverse_root);
  // s (T, B, P) or (B, P); alpha (B, P) is read as alpha_{-1} and left as alpha_{T-1}.
  void (*forward)(const SyncSizes&, const T* z, SyncStrides, const int32_t* left, const int32_t* right,
                  const T* r, const T* inverse_root, T* alpha, T* s, int threads);
  // ds like s. galpha (B, P) is read as the gradient of alpha_{T-1} and left as that of alpha_{-1}.
  // dz (null: skipped) is added to. dr, dbeta (null: both skipped; P): dbeta is read as the gradient of
  // beta_{T-1} and left as that of beta_{-1}; alpha0 (B, P), beta0 (P) are the initial states.
  void (*backward)(const SyncSizes&, const T* z, SyncStrides, const int32_t* left, const int32_t* right,
                   const T* r, const T* inverse_root, const T* alpha0, const T* beta0, const T* ds, T* galpha,
                   T* dz, SyncStrides dz_strides, T* dr, T* dbeta, int threads);
};

struct SyncKernels {
  SyncTable<float> f32;
  SyncTable<double> f64;
};

}  // namespace ctm
