// Static partition of independent work over the caller's number of threads.
#pragma once

#include <cstdint>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "buffer.h"

namespace ctm::CTM_LEVEL {

// Calls body(i) for i in [0, n). The work of one i never depends on the number of threads, so results are the
// same bits for every thread count. The body must not throw.
template <class Body>
inline void parallel_for(int threads, int64_t n, const Body& body) {
  if (threads <= 1 || n <= 1) {
    for (int64_t i = 0; i < n; ++i) body(i);
    return;
  }
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t i = 0; i < n; ++i) body(i);
}

// The same with body(i, scratch): `count` elements that belong to the thread, as the i before left them.
template <class T, class Body>
inline void parallel_for(int threads, int64_t n, int64_t count, const Body& body) {
  const int team = threads <= 1 || n <= 1 ? 1 : threads;
  const Buffer<T> scratch(team * whole_lines<T>(count));
#ifdef _OPENMP
  if (team > 1) {
#pragma omp parallel num_threads(team)
    {
      T* own = scratch.data + omp_get_thread_num() * whole_lines<T>(count);
#pragma omp for schedule(static)
      for (int64_t i = 0; i < n; ++i) body(i, own);
    }
    return;
  }
#endif
  for (int64_t i = 0; i < n; ++i) body(i, scratch.data);
}

}  // namespace ctm::CTM_LEVEL
