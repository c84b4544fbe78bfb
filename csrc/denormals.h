// Flushes denormal numbers to zero on the calling thread while it lives: decayed sums would crawl otherwise.
#pragma once

#include <cstdint>

#ifdef __SSE2__
#include <xmmintrin.h>
#endif

namespace ctm::CTM_LEVEL {

class FlushDenormals {
 public:
  FlushDenormals() : before_(control()) { set(before_ | kFlush); }
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;
  ~FlushDenormals() { set(before_); }

 private:
#if defined(__SSE2__)
  using Word = unsigned int;
  static constexpr Word kFlush = 0x8040;  // results and operands
  static Word control() { return _mm_getcsr(); }
  static void set(Word word) { _mm_setcsr(word); }
#elif defined(__aarch64__)
  using Word = uint64_t;
  static constexpr Word kFlush = 1u << 24;
  static Word control() {
    Word word;
    asm volatile("mrs %0, fpcr" : "=r"(word));
    return word;
  }
  static void set(Word word) { asm volatile("msr fpcr, %0" : : "r"(word)); }
#else
  using Word = int;
  static constexpr Word kFlush = 0;
  static Word control() { return 0; }
  static void set(Word) {}
#endif
  const Word before_;
};

}  // namespace ctm::CTM_LEVEL
