// Static partition of independent work over the caller's number of threads.
#pragma once

#include <cstdint>

namespace ctm::CTM_LEVEL {

// Calls body(i) for i in [0, n). The work of one i never depends on the number of threads, so results are the
// same bits for every thread count.
template <class Body>
inline void parallel_for(int threads, int64_t n, const Body& body) {
  if (threads <= 1 || n <= 1) {
    for (int64_t i = 0; i < n; ++i) body(i);
    return;
  }
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t i = 0; i < n; ++i) body(i);
}

}  // namespace ctm::CTM_LEVEL
