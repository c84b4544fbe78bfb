// What engines need beside arithmetic: their memory, and a look at their inputs. For files that are compiled
// once per SIMD level.
#pragma once

#include "buffer.h"
#include "pages.h"
#include "synapse_rows.h"

namespace ctm::CTM_LEVEL {
namespace {

// Whether no element is NaN or infinite.
inline bool finite(int64_t count, const float* x) {
  Vec<float> sum{};
  over_row<float>(count, [&](int64_t i, int k) { sum += load_part(x + i, k) * 0.0f; });
  return sum_lanes<float>(sum) == 0.0f;
}

constexpr int64_t kHuge = 1 << 19;  // floats of a huge page

struct Pages {  // memory on huge pages where it is large
  const Buffer<float> memory;

  explicit Pages(int64_t count) : memory(count) {
    if (count >= kHuge)
      advise_huge(reinterpret_cast<uintptr_t>(memory.data), static_cast<size_t>(count) * sizeof(float));
  }
};

}  // namespace
}  // namespace ctm::CTM_LEVEL
