// Arguments that kernels of several families take.
#pragma once

#include <cstdint>

namespace ctm {

enum class Storage { f32, f64, bf16 };

struct DropoutRows {
  double p = 0.0;
  uint64_t seed = 0;
  int64_t first_row = 0;  // index of row 0 in the mask's row counter
};

}  // namespace ctm
