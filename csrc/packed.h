// Packed weights name the SIMD level that they were packed for: their blocks have its width.
#pragma once

#include <stdexcept>
#include <string>

#include "buffer.h"
#include "simd.h"

namespace ctm::CTM_LEVEL {

// Elements before the first block, of which the first one holds `lanes`.
template <class T>
constexpr int64_t kHeader = whole_lines<T>(1);

// The blocks of a buffer that is about to be packed.
template <class T>
T* new_blocks(T* packed) {
  *packed = T(lanes<T>);
  return packed + kHeader<T>;
}

// The blocks of a packed buffer; throws std::invalid_argument where another level packed them.
template <class T>
const T* blocks_of(const char* op, const T* packed) {
  if (*packed != T(lanes<T>))
    throw std::invalid_argument(std::string(op) +
                                ": packed must be of the SIMD level in use, got one of another level");
  return packed + kHeader<T>;
}

}  // namespace ctm::CTM_LEVEL
