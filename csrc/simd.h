// Vectors of one SIMD level, written with the compiler's vector extensions.
//
// Every kernel file is compiled once per level (CTM_LEVEL is baseline, avx2 or avx512) into a namespace of
// that name, so nothing here may have external linkage outside of it: an inline function that the linker
// merged across levels could run AVX-512 code on a machine without it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#if defined(CTM_LEVEL_avx512)
#define CTM_VECTOR_BYTES 64
#define CTM_ROWS 8  // rows of a register tile: two accumulators a row, one input, two weights
#elif defined(CTM_LEVEL_avx2)
#define CTM_VECTOR_BYTES 32
#define CTM_ROWS 4
#else
#define CTM_VECTOR_BYTES 16
#define CTM_ROWS 4
#endif

#define CTM_INLINE inline __attribute__((always_inline))
#define CTM_UNROLL _Pragma("GCC unroll 8")

namespace ctm::CTM_LEVEL {

template <class T>
struct VecOf;
template <>
struct VecOf<float> {
  typedef float type __attribute__((vector_size(CTM_VECTOR_BYTES)));
  typedef int32_t ints __attribute__((vector_size(CTM_VECTOR_BYTES)));
  typedef uint32_t bits __attribute__((vector_size(CTM_VECTOR_BYTES)));
};
template <>
struct VecOf<double> {
  typedef double type __attribute__((vector_size(CTM_VECTOR_BYTES)));
  typedef int64_t ints __attribute__((vector_size(CTM_VECTOR_BYTES)));
  typedef uint64_t bits __attribute__((vector_size(CTM_VECTOR_BYTES)));
};
template <class T>
using Vec = typename VecOf<T>::type;
template <class T>
constexpr int lanes = CTM_VECTOR_BYTES / static_cast<int>(sizeof(T));
template <class T>
constexpr int V = lanes<T>;

// How many lanes of the vector at position `at` lie below n.
template <class T>
CTM_INLINE int part(int64_t n, int64_t at) {
  return static_cast<int>(n - at < V<T> ? n - at : V<T>);
}

template <class T>
CTM_INLINE Vec<T> splat(T value) {
  return Vec<T>{} + value;
}

template <class T>
CTM_INLINE Vec<T> load(const T* p) {
  Vec<T> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class T>
CTM_INLINE void store(T* p, Vec<T> v) {
  std::memcpy(p, &v, sizeof v);
}

// The first n lanes; the others are `rest`.
template <class T>
CTM_INLINE Vec<T> load_part(const T* p, int n, T rest = T(0)) {
  if (n == lanes<T>) return load(p);
  T buffer[lanes<T>];
  for (int i = 0; i < lanes<T>; ++i) buffer[i] = i < n ? p[i] : rest;
  return load(buffer);
}

template <class T>
CTM_INLINE void store_part(T* p, Vec<T> v, int n) {
  if (n == lanes<T>) {
    store(p, v);
  } else {
    for (int i = 0; i < n; ++i) p[i] = v[i];
  }
}

// Pairwise: 16-byte quarters first, then within one.
template <class T>
CTM_INLINE T sum_lanes(Vec<T> v) {
  typedef T Part __attribute__((vector_size(16)));
  constexpr int parts = CTM_VECTOR_BYTES / 16, width = 16 / static_cast<int>(sizeof(T));
  Part part[parts];
  std::memcpy(part, &v, sizeof v);
  CTM_UNROLL for (int n = parts / 2; n > 0; n /= 2) CTM_UNROLL for (int i = 0; i < n; ++i) part[i] +=
      part[i + n];
  if constexpr (width == 2) {
    return part[0][0] + part[0][1];
  } else {
    return (part[0][0] + part[0][2]) + (part[0][1] + part[0][3]);
  }
}

// One step of a transposition: exchanges the off-diagonal S x S blocks of two rows.
template <class T, int S>
CTM_INLINE void exchange(Vec<T>& a, Vec<T>& b) {
#if defined(__clang__)
  const Vec<T> first = a, second = b;
  for (int i = 0; i < lanes<T>; ++i) {
    a[i] = i & S ? second[i - S] : first[i];
    b[i] = i & S ? second[i] : first[i + S];
  }
#else
  typename VecOf<T>::ints low, high;
  for (int i = 0; i < lanes<T>; ++i) {
    low[i] = i & S ? lanes<T> + i - S : i;
    high[i] = i & S ? lanes<T> + i : i + S;
  }
  const Vec<T> first = a;
  a = __builtin_shuffle(first, b, low);
  b = __builtin_shuffle(first, b, high);
#endif
}

// Transposes `lanes` rows of `lanes` elements in place.
template <class T, int S = 1>
CTM_INLINE void transpose(Vec<T> (&rows)[lanes<T>]) {
  CTM_UNROLL for (int i = 0; i < lanes<T>; ++i) if (!(i & S)) exchange<T, S>(rows[i], rows[i + S]);
  if constexpr (2 * S < lanes<T>) transpose<T, 2 * S>(rows);
}

// exp(x) = scale (1 + rest) by Cody-Waite reduction to |r| <= ln(2)/2, a power of two, and a polynomial for
// exp(r) - 1.
template <class T>
struct Exponential {
  Vec<T> scale, rest;
};

CTM_INLINE Exponential<float> exponential(Vec<float> x) {
  const Vec<float> high = splat(88.9f), low = splat(-87.9f);
  x = x > high ? high : x;
  x = x < low ? low : x;
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low mantissa bits
  const Vec<float> shifted = x * 1.44269504088896341f + magic;
  const Vec<float> n = shifted - magic;
  Vec<float> r = x - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  Vec<float> p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  using Bits = VecOf<float>::bits;
  return {(Vec<float>)(((Bits)shifted + 127u) << 23), p * (r * r) + r};
}

CTM_INLINE Exponential<double> exponential(Vec<double> x) {
  const Vec<double> high = splat(709.8), low = splat(-708.4);
  x = x > high ? high : x;
  x = x < low ? low : x;
  const double magic = 6755399441055744.0;  // 1.5 * 2^52
  const Vec<double> shifted = x * 1.4426950408889634074 + magic;
  const Vec<double> n = shifted - magic;
  Vec<double> r = x - n * 6.93145751953125e-1;
  r = r - n * 1.42860682030941723212e-6;
  Vec<double> p = splat(1.0 / 6227020800.0);
  p = p * r + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  using Bits = VecOf<double>::bits;
  return {(Vec<double>)(((Bits)shifted + 1023ull) << 52), p * (r * r) + r};
}

// Relative error below 1.2 units in the last place. Overflows to +inf, underflows to 0, propagates NaN.
template <class Vector>
CTM_INLINE Vector exp(Vector x) {
  const auto e = exponential(x);
  return (e.rest + 1.0f) * e.scale;
}

// By exp(2x) - 1, which keeps its relative accuracy where x is small.
template <class Vector>
CTM_INLINE Vector tanh(Vector x) {
  const Vector one = Vector{} + 20.0f;  // tanh of it is 1
  x = x > one ? one : x;
  x = x < -one ? -one : x;
  const auto e = exponential(x + x);
  const Vector less = e.scale * e.rest + (e.scale - 1.0f);
  return less / (less + 2.0f);
}

// Log of positive normal numbers, relative error below 1.5 units in the last place; infinity and NaN stay
// what they are. With x = 2^k (1 + f), 1 + f in [sqrt(1/2), sqrt(2)), and s = f / (2 + f):
//   log(1 + f) = f - (f^2 / 2 - s (f^2 / 2 + r)),   r = 2 (s^2 / 3 + s^4 / 5 + ...)
template <class T>
CTM_INLINE Vec<T> log(Vec<T> x) {
  using Bits = typename VecOf<T>::bits;
  using Ints = typename VecOf<T>::ints;
  constexpr bool single = sizeof(T) == 4;
  using Word = std::conditional_t<single, uint32_t, uint64_t>;
  constexpr int mantissa = single ? 23 : 52, terms = single ? 5 : 10;
  constexpr Word root_half = static_cast<Word>(single ? 0x3F3504F3 : 0x3FE6A09E667F3BCD);
  constexpr Word magic_bits = static_cast<Word>(single ? 0x4B400000 : 0x4338000000000000);
  constexpr T magic = single ? T(12582912) : T(6755399441055744);  // 1.5 * 2^mantissa: its low bits count
  const Bits bits = (Bits)x;
  const Ints exponent = (Ints)(bits - root_half) >> mantissa;
  const Vec<T> f = (Vec<T>)(bits - ((Bits)exponent << mantissa)) - T(1);
  const Vec<T> k = (Vec<T>)((Bits)exponent + magic_bits) - magic;
  const Vec<T> s = f / (f + T(2)), z = s * s, half = T(0.5) * f * f;
  Vec<T> r = splat(T(2) / T(2 * terms + 1));
  CTM_UNROLL for (int i = terms - 1; i > 0; --i) r = r * z + T(2) / T(2 * i + 1);
  constexpr T high = single ? T(0.693359375) : T(6.93147180369123816490e-01);
  constexpr T low = single ? T(-2.12194440e-4) : T(1.90821492927058770002e-10);
  const Vec<T> found = k * high - ((half - (s * (half + r * z) + k * low)) - f);
  return x < splat(std::numeric_limits<T>::infinity()) ? found : x;
}

template <class T>
CTM_INLINE Vec<T> sqrt(Vec<T> x) {
  for (int i = 0; i < lanes<T>; ++i) x[i] = std::sqrt(x[i]);
  return x;
}

template <class Vector>
CTM_INLINE Vector sigmoid(Vector x) {
  return 1.0f / (1.0f + exp(-x));
}

// Of one number, as exact as the C library.
template <class T>
CTM_INLINE T logistic(T x) {
  return T(1) / (T(1) + std::exp(-x));
}
template <class T>
CTM_INLINE T softplus(T x) {
  return x > T(0) ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x));
}

// Counter-based dropout: element `index` of a row is kept where hash(index, key of the row) >= threshold.
// The same integers give the same mask in any kernel, SIMD level, thread count and in the reference.
CTM_INLINE uint32_t row_key(uint64_t seed, uint64_t row) {
  uint64_t x = seed + (row + 1) * 0x9E3779B97F4A7C15ull;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return static_cast<uint32_t>((x ^ (x >> 31)) >> 32);
}

struct Dropout {
  uint32_t threshold;  // p * 2^32, rounded; 0 keeps everything
  float scale;         // 1 / (1 - p)
  uint64_t seed;

  Dropout(double p, uint64_t seed_)
      : scale(p < 1.0 ? static_cast<float>(1.0 / (1.0 - p)) : 0.0f), seed(seed_) {
    const double limit = p * 4294967296.0;
    threshold = limit >= 4294967295.0 ? 4294967295u : static_cast<uint32_t>(limit + 0.5);
  }
  bool on() const { return threshold != 0; }
};

// Hashes of `lanes` consecutive indices. 64-bit lanes hold 32-bit numbers.
template <class T>
CTM_INLINE typename VecOf<T>::bits lane_hashes(uint32_t key, uint32_t index) {
  using Bits = typename VecOf<T>::bits;
  const Bits low = Bits{} + 0xFFFFFFFFu;
  Bits x;
  for (int i = 0; i < lanes<T>; ++i) x[i] = static_cast<uint32_t>(index + static_cast<uint32_t>(i));
  x = (x * 0x9E3779B1u + key) & low;
  x = ((x ^ (x >> 16)) * 0x7FEB352Du) & low;
  x = ((x ^ (x >> 15)) * 0x846CA68Bu) & low;
  return x ^ (x >> 16);
}

// scale or 0 for `lanes` consecutive elements starting at `index`.
template <class T>
CTM_INLINE Vec<T> keep_mask(const Dropout& drop, uint32_t key, uint32_t index) {
  const auto hash = lane_hashes<T>(key, index);
  return hash >= decltype(hash){} + drop.threshold ? splat(T(drop.scale)) : Vec<T>{};
}

}  // namespace ctm::CTM_LEVEL
