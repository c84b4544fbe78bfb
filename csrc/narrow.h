// Numbers narrower than those computed with: bfloat16, and int8 with a scale. They are widened in registers.
#pragma once

#include <type_traits>

#include "simd.h"

#if defined(CTM_LEVEL_avx512) || defined(CTM_LEVEL_avx2)
#include <immintrin.h>
#endif

namespace ctm::CTM_LEVEL {
namespace {

struct BFloat16 {
  uint16_t bits;
};

CTM_INLINE float widen(float x) { return x; }
CTM_INLINE double widen(double x) { return x; }
CTM_INLINE float widen(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

CTM_INLINE void narrow(float value, float* out) { *out = value; }
CTM_INLINE void narrow(double value, double* out) { *out = value; }
CTM_INLINE void narrow(float value, BFloat16* out) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const bool nan = value != value;
  out->bits = nan ? uint16_t(0x7FC0) : static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

// Two vectors of weights that are packed together.
template <class T>
struct Pair {
  Vec<T> first, second;
};

// Weights of this type are multiples of a scale.
template <class W>
constexpr bool kScaled = std::is_same_v<W, int8_t>;

// Where element l of both vectors is packed. Those of bfloat16 take turns: one shift or mask widens them.
template <class W>
constexpr int slot(int l) {
  constexpr int width = lanes<float>;
  if constexpr (std::is_same_v<W, BFloat16>)
    return l < width ? 2 * l : 2 * (l - width) + 1;
  else
    return l;
}

template <class T>
CTM_INLINE Pair<T> load_pair(const T* p) {
  return {load(p), load(p + V<T>)};
}

CTM_INLINE Pair<float> load_pair(const BFloat16* p) {
  VecOf<float>::bits words;
  std::memcpy(&words, p, sizeof words);
  return {(Vec<float>)(words << 16), (Vec<float>)(words & 0xFFFF0000u)};
}

// The compiler's own conversion of bytes to words takes several shuffles where one instruction does it.
CTM_INLINE VecOf<float>::ints load_words(const int8_t* p) {
  using Ints = VecOf<float>::ints;
#if defined(CTM_LEVEL_avx512)
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return (Ints)_mm512_maskz_cvtepi8_epi32(static_cast<__mmask16>(-1), bytes);
#elif defined(CTM_LEVEL_avx2)
  return (Ints)_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
#else
  typedef int8_t Bytes __attribute__((vector_size(CTM_VECTOR_BYTES / 4)));
  typedef int16_t Shorts __attribute__((vector_size(CTM_VECTOR_BYTES / 2)));
  Bytes bytes;
  std::memcpy(&bytes, p, sizeof bytes);
  return __builtin_convertvector(__builtin_convertvector(bytes, Shorts), Ints);
#endif
}

CTM_INLINE Pair<float> load_pair(const int8_t* p) {
  return {__builtin_convertvector(load_words(p), Vec<float>),
          __builtin_convertvector(load_words(p + V<float>), Vec<float>)};
}

}  // namespace
}  // namespace ctm::CTM_LEVEL
