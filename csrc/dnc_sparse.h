// Sparse temporal links of one sample: of every row the K largest, with their columns in ascending order.
//
// New links lead to the K slots of the largest precedence. The choice among old and new links carries no
// gradient; of equal values the first column is kept.
#pragma once

#include "dnc_links.h"
#include "dnc_usage.h"

namespace ctm::CTM_LEVEL {

template <class T>
struct SparseRows {
  T* values;         // (N, K)
  int64_t* columns;  // (N, K)
};

template <class T>
class SparseLinks {
 public:
  using Rows = SparseRows<T>;

  SparseLinks(int64_t slots, int64_t links, Arena<T>& arena)
      : slots_(slots),
        links_(links),
        latest_(arena.take(links), arena.template take<int64_t>(links)),
        found_(arena.take(2 * links), arena.template take<int64_t>(2 * links)),
        keys_(arena.template take<Key<T>>(2 * links)),
        gradients_(arena.take(links)) {}
  Rows take(Arena<T>& arena) const {
    return {arena.take(slots_ * links_), arena.template take<int64_t>(slots_ * links_)};
  }

  void read(const T* link, const int64_t* columns, Rows rows) const {
    copy(slots_ * links_, link, rows.values);
    if (columns) copy(slots_ * links_, columns, rows.columns);
  }
  void write(Rows rows, T* link, int64_t* columns) const {
    copy(slots_ * links_, rows.values, link);
    if (columns) copy(slots_ * links_, rows.columns, columns);
  }

  // `to` may be `from`.
  void advance(Rows from, const T* w, const T* p, Rows to) const {
    find_latest(p);
    for (int64_t i = 0; i < slots_; ++i) {
      const int64_t count = merge(i, w, row(from, i));
      keep_largest(count, row(to, i));
    }
  }

  void follow(Rows rows, const Heads<T>& heads, T* forward, T* backward) const {
    const int64_t P = whole<T>(slots_);
    clear(forward, heads.count * P);
    clear(backward, heads.count * P);
    for (int64_t h = 0; h < heads.count; ++h) {
      const T* read = heads.read + h * P;
      for (int64_t i = 0; i < slots_; ++i) {
        const Rows at = row(rows, i);
        T sum = 0;
        for (int64_t k = 0; k < links_; ++k) {
          sum += at.values[k] * read[at.columns[k]];
          backward[h * P + at.columns[k]] += at.values[k] * read[i];
        }
        forward[h * P + i] = sum;
      }
    }
  }

  void retrace(Rows rows, const Heads<T>& heads, const Followed<T>& g, Rows drows, T* columns,
               T* along) const {
    const int64_t P = whole<T>(slots_);
    clear(columns, heads.count * P);
    clear(along, heads.count * P);
    for (int64_t h = 0; h < heads.count; ++h) {
      const T *read = heads.read + h * P, *forward = g.forward + h * P, *backward = g.backward + h * P;
      for (int64_t i = 0; i < slots_; ++i) {
        const Rows at = row(rows, i), d = row(drows, i);
        const T x = g.forward_scale[h] * forward[i], y = g.backward_scale[h] * read[i];
        T sum = 0;
        for (int64_t k = 0; k < links_; ++k) {
          const int64_t j = at.columns[k];
          d.values[k] += x * read[j] + y * backward[j];
          sum += at.values[k] * backward[j];
          columns[h * P + j] += at.values[k] * forward[i];
        }
        along[h * P + i] = sum;
      }
    }
  }

  // As of dense links; `to` is what advance() made of `from`. Links that were not kept get no gradient.
  void recede(Rows from, Rows to, const T* w, const T* p, Rows drows, T* dw, T* dp) const {
    find_latest(p);
    for (int64_t i = 0; i < slots_; ++i) {
      T* d = row(drows, i).values;
      copy(links_, d, gradients_);
      recede_row(i, row(from, i), row(to, i), w, d, dw, dp);
    }
  }

 private:
  Rows row(Rows rows, int64_t i) const {
    return {rows.values + i * links_, rows.columns ? rows.columns + i * links_ : nullptr};
  }

  // The K slots of the largest precedence, of equal ones the first, in ascending order.
  void find_latest(const T* p) const {
    int64_t count = 0;
    for (int64_t n = 0; n < slots_; ++n) {
      const Key<T> key = key_of(p[n]);
      if (count == links_ && key <= keys_[count - 1]) continue;
      int64_t at = count < links_ ? count++ : count - 1;
      for (; at > 0 && keys_[at - 1] < key; --at) {
        keys_[at] = keys_[at - 1];
        latest_.columns[at] = latest_.columns[at - 1];
      }
      keys_[at] = key;
      latest_.columns[at] = n;
    }
    std::sort(latest_.columns, latest_.columns + count);
    for (int64_t k = 0; k < count; ++k) latest_.values[k] = p[latest_.columns[k]];
  }

  // The first column of what is left of an old row and of the latest slots.
  int64_t next_column(Rows old, int64_t o, int64_t l) const {
    const int64_t kept = o < links_ ? old.columns[o] : slots_;
    const int64_t made = l < links_ ? latest_.columns[l] : slots_;
    return kept < made ? kept : made;
  }

  // Old and new links of row i by ascending column, into found_; returns how many.
  int64_t merge(int64_t i, const T* w, Rows old) const {
    const T own = w[i], keep = T(1) - own;
    int64_t count = 0, o = 0, l = 0;
    while (o < links_ || l < links_) {
      const int64_t j = next_column(old, o, l);
      T value = 0;
      if (o < links_ && old.columns[o] == j) value = (keep - w[j]) * old.values[o++];
      if (l < links_ && latest_.columns[l] == j) value += own * latest_.values[l++];
      found_.values[count] = j == i ? T(0) : value;
      found_.columns[count++] = j;
    }
    return count;
  }

  // The K largest of found_; the smallest goes first, of equal ones the last column.
  void keep_largest(int64_t count, Rows to) const {
    for (int64_t k = 0; k < count; ++k) keys_[k] = key_of(found_.values[k]);
    int64_t kept = 0;
    for (int64_t k = 0; k < count; ++k) {
      int64_t larger = 0;
      for (int64_t m = 0; m < k; ++m) larger += keys_[m] >= keys_[k];
      for (int64_t m = k + 1; m < count; ++m) larger += keys_[m] > keys_[k];
      if (larger >= links_) continue;
      to.values[kept] = found_.values[k];
      to.columns[kept++] = found_.columns[k];
    }
  }

  // Over the candidates of merge(): one that was not kept has a gradient of zero.
  void recede_row(int64_t i, Rows old, Rows to, const T* w, T* d, T* dw, T* dp) const {
    const T own = w[i], keep = T(1) - own;
    T made = 0, lost = 0;
    int64_t k = 0, o = 0, l = 0;
    while (o < links_ || l < links_) {
      const int64_t j = next_column(old, o, l);
      const bool kept = k < links_ && to.columns[k] == j;
      const T g = kept && j != i ? gradients_[k] : T(0);
      k += kept;
      if (o < links_ && old.columns[o] == j) {
        lost += g * old.values[o];
        dw[j] -= g * old.values[o];
        d[o++] = g * (keep - w[j]);
      }
      if (l < links_ && latest_.columns[l] == j) {
        made += g * latest_.values[l++];
        dp[j] += g * own;
      }
    }
    dw[i] += made - lost;
  }

  int64_t slots_, links_;
  Rows latest_, found_;
  Key<T>* keys_;
  T* gradients_;
};

}  // namespace ctm::CTM_LEVEL
