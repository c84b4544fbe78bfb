// Scratch memory of a kernel call.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

namespace ctm::CTM_LEVEL {

constexpr int64_t kLine = 64;  // bytes; no two threads write to one cache line

template <class T>
constexpr int64_t whole_lines(int64_t count) {
  constexpr int64_t line = kLine / static_cast<int64_t>(sizeof(T));
  return (count + line - 1) / line * line;
}

// `count` elements from a cache line's start, not initialised. Throws std::bad_alloc, so it is made outside
// of parallel regions, which no exception may leave.
template <class T>
struct Buffer {
  T* const data;

  explicit Buffer(int64_t count) : data(allocate(whole_lines<T>(count))) {}
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(data); }

 private:
  static T* allocate(int64_t count) {
    if (count < 0 || count > INT64_MAX / static_cast<int64_t>(sizeof(T))) throw std::bad_alloc();
    const size_t bytes = static_cast<size_t>(count) * sizeof(T);
    void* memory = std::aligned_alloc(kLine, bytes ? bytes : kLine);
    if (!memory) throw std::bad_alloc();
    return static_cast<T*>(memory);
  }
};

// Hands out pieces of one scratch buffer; without a buffer it only counts them.
template <class T>
struct Arena {
  T* data = nullptr;
  int64_t used = 0;

  template <class U = T>
  U* take(int64_t count) {
    U* piece = data ? reinterpret_cast<U*>(data + used) : nullptr;
    constexpr int64_t per_line = kLine / static_cast<int64_t>(sizeof(T));
    used += whole_lines<U>(count) * static_cast<int64_t>(sizeof(U)) / kLine * per_line;
    return piece;
  }
};

template <class T>
inline void clear(T* data, int64_t count) {
  std::memset(static_cast<void*>(data), 0, sizeof(T) * static_cast<size_t>(count));
}

template <class T>
inline void copy(int64_t count, const T* from, T* to) {
  std::memcpy(to, from, sizeof(T) * static_cast<size_t>(count));
}

}  // namespace ctm::CTM_LEVEL
