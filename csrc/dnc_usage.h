// Order of slots by size, and the allocation weighting of the Differentiable Neural Computer.
#pragma once

#include <algorithm>
#include <limits>

#include "dnc_slots.h"

namespace ctm::CTM_LEVEL {

template <class T>
using Key = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

// Integers in the order of the numbers; both zeros are equal and NaN is the largest, as torch sorts them.
template <class T>
CTM_INLINE Key<T> key_of(T x) {
  if (x != x) return std::numeric_limits<Key<T>>::max();
  x += T(0);
  Key<T> bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits < 0 ? bits ^ std::numeric_limits<Key<T>>::max() : bits;
}

constexpr int64_t kCounted = 256;  // up to here comparing every pair in vectors beats sorting

// order[j] is the slot of the j-th smallest key, of equal ones the first slot first. `keys` has whole
// vectors; `rank` is scratch of their size.
template <class T>
void ascending(int64_t n, const Key<T>* keys, Key<T>* rank, int32_t* order) {
  if (n > kCounted) {
    for (int64_t i = 0; i < n; ++i) order[i] = static_cast<int32_t>(i);
    std::stable_sort(order, order + n, [keys](int32_t a, int32_t b) { return keys[a] < keys[b]; });
    return;
  }
  typename VecOf<T>::ints own, smaller, lane;
  for (int i = 0; i < lanes<T>; ++i) lane[i] = i;
  for (int64_t at = 0; at < n; at += lanes<T>) {
    std::memcpy(&own, keys + at, sizeof own);
    smaller = own - own;
    const int64_t end = at + lanes<T> < n ? at + lanes<T> : n;
    for (int64_t m = 0; m < at; ++m) smaller -= keys[m] <= own;
    for (int64_t m = at; m < n; ++m) smaller -= keys[m] < own;
    for (int64_t m = at; m < end; ++m) smaller -= (keys[m] == own) & (lane > static_cast<Key<T>>(m - at));
    std::memcpy(rank + at, &smaller, sizeof smaller);
  }
  for (int64_t i = 0; i < n; ++i) order[rank[i]] = static_cast<int32_t>(i);
}

template <class T>
class Allocation {
 public:
  Allocation(int64_t slots, T eps, Arena<T>& arena)
      : slots_(slots),
        eps_(eps),
        keys_(arena.template take<Key<T>>(whole<T>(slots))),
        rank_(arena.template take<Key<T>>(whole<T>(slots))),
        order_(arena.template take<int32_t>(slots)),
        below_(arena.take(slots)) {}

  void sort(const T* usage) const {
    for (int64_t n = 0; n < slots_; ++n) keys_[n] = key_of(usage[n]);
    clear(keys_ + slots_, whole<T>(slots_) - slots_);
    ascending<T>(slots_, keys_, rank_, order_);
  }

  // For the usage that was sorted last: out[order[j]] = (1 - x_j) prod_{i<j} x_i, x the squeezed usages in
  // ascending order.
  void forward(const T* usage, T* out) const {
    T product = 1;
    for (int64_t j = 0; j < slots_; ++j) {
      const int32_t n = order_[j];
      const T x = squeezed(usage[n]);
      out[n] = (T(1) - x) * product;
      product *= x;
    }
  }

  // Adds to dusage, for the usage that was sorted last. With P_j = prod_{i<j} x_i and
  // S_j = sum_{m>j} g_m (1 - x_m) prod_{j<i<m} x_i the gradient of x_j is P_j (S_j - g_j): nothing is
  // divided.
  void backward(const T* usage, const T* gradient, T* dusage) const {
    T product = 1, after = 0;
    for (int64_t j = 0; j < slots_; ++j) {
      below_[j] = product;
      product *= squeezed(usage[order_[j]]);
    }
    for (int64_t j = slots_ - 1; j >= 0; --j) {
      const int32_t n = order_[j];
      const T g = gradient[n], x = squeezed(usage[n]);
      dusage[n] += (T(1) - eps_) * below_[j] * (after - g);
      after = j == slots_ - 1 ? g * (T(1) - x) : g * (T(1) - x) + x * after;
    }
  }

 private:
  T squeezed(T usage) const { return eps_ + (T(1) - eps_) * usage; }
  int64_t slots_;
  T eps_;
  Key<T>*keys_, *rank_;
  int32_t* order_;
  T* below_;
};

}  // namespace ctm::CTM_LEVEL
