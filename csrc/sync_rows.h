// Rows of the synchronisation (see sync.h). For sync_cpu.cpp and the engine, compiled with them once per SIMD
// level.
#pragma once

#include "simd.h"
#include "sync.h"

namespace ctm::CTM_LEVEL {
namespace {

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

}  // namespace
}  // namespace ctm::CTM_LEVEL
