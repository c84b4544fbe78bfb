// Dense temporal links of one sample: N rows of padded(N), link[i][j] how far slot i was written after j.
//
//   new[i][j] = (1 - w[i] - w[j]) old[i][j] + w[i] p[j], new[i][i] = 0
#pragma once

#include "slots.h"

namespace ctm::CTM_LEVEL {

// What follows a link, and what its gradients come from: R vectors over the slots each.
template <class T>
struct Heads {
  int64_t count;
  const T* read;  // weightings of the step before
};

// Gradients that arrive at the two weightings that follow the links: row_scale[h] * forward[h] and
// column_scale[h] * backward[h].
template <class T>
struct Followed {
  const T *forward, *forward_scale, *backward, *backward_scale;
};

template <class T>
class DenseLinks {
 public:
  using Rows = T*;

  DenseLinks(int64_t slots, int64_t, Arena<T>&) : slots_(slots), pad_(padded<T>(slots)) {}
  Rows take(Arena<T>& arena) const { return arena.take(slots_ * pad_); }

  void read(const T* link, const int64_t*, Rows rows) const {
    for (int64_t i = 0; i < slots_; ++i) read_padded(slots_, link + i * slots_, rows + i * pad_);
  }
  void write(Rows rows, T* link, int64_t*) const {
    for (int64_t i = 0; i < slots_; ++i) copy(slots_, rows + i * pad_, link + i * slots_);
  }

  // `to` may be `from`.
  void advance(Rows from, const T* w, const T* p, Rows to) const {
    for (int64_t i = 0; i < slots_; ++i) {
      const T own = w[i], keep = T(1) - own;
      for (int64_t v = 0; v < pad_; v += V) {
        const Vec<T> old = load(from + i * pad_ + v);
        store(to + i * pad_ + v, (keep - load(w + v)) * old + own * load(p + v));
      }
      to[i * pad_ + i] = 0;
      clear(to + i * pad_ + slots_, pad_ - slots_);
    }
  }

  // forward[h] = link read[h], backward[h] = link^T read[h]
  void follow(Rows rows, const Heads<T>& heads, T* forward, T* backward) const {
    clear(forward, heads.count * pad_);
    clear(backward, heads.count * pad_);
    by_fours(slots_, [&](auto height, int64_t i) {
      by_fours(heads.count, [&](auto width, int64_t h) {
        follow_block<decltype(height)::value, decltype(width)::value>(
            rows + i * pad_, i, heads.read + h * pad_, forward + h * pad_, backward + h * pad_);
      });
    });
  }

  // Gradients of follow(): drows is added to; columns[h] = link^T forward[h], along[h] = link backward[h].
  void retrace(Rows rows, const Heads<T>& heads, const Followed<T>& g, Rows drows, T* columns,
               T* along) const {
    clear(columns, heads.count * pad_);
    clear(along, heads.count * pad_);
    by_fours(slots_, [&](auto height, int64_t i) {
      by_fours(heads.count, [&](auto width, int64_t h) {
        retrace_block<decltype(height)::value, decltype(width)::value>(rows, i, h, heads.read, g, drows,
                                                                       columns, along);
      });
    });
  }

  // Gradients of advance(): drows, those of the new links, become those of the old; dw and dp are added to.
  void recede(Rows from, Rows, const T* w, const T* p, Rows drows, T* dw, T* dp) const {
    by_fours(slots_, [&](auto height, int64_t i) {
      recede_block<decltype(height)::value>(from + i * pad_, i, w, p, drows + i * pad_, dw, dp);
    });
  }

 private:
  static constexpr int V = lanes<T>;

  template <int ROWS, int H>
  CTM_INLINE void follow_block(const T* rows, int64_t i, const T* read, T* forward, T* backward) const {
    Vec<T> sum[H][ROWS] = {};
    for (int64_t v = 0; v < pad_; v += V) {
      Vec<T> row[ROWS];
      CTM_UNROLL for (int r = 0; r < ROWS; ++r) row[r] = load(rows + r * pad_ + v);
      CTM_UNROLL for (int h = 0; h < H; ++h) {
        const T* own = read + h * pad_;
        const Vec<T> x = load(own + v);
        Vec<T> y = load(backward + h * pad_ + v);
        CTM_UNROLL for (int r = 0; r < ROWS; ++r) {
          sum[h][r] += row[r] * x;
          y += row[r] * own[i + r];
        }
        store(backward + h * pad_ + v, y);
      }
    }
    for (int h = 0; h < H; ++h) sums<T, ROWS>(sum[h], forward + h * pad_ + i);
  }

  template <int ROWS, int H>
  CTM_INLINE void retrace_block(Rows all, int64_t i, int64_t head, const T* all_reads, const Followed<T>& g,
                                Rows all_d, T* all_columns, T* all_along) const {
    const T *rows = all + i * pad_, *read = all_reads + head * pad_, *forward = g.forward + head * pad_,
            *backward = g.backward + head * pad_;
    T *drows = all_d + i * pad_, *columns = all_columns + head * pad_, *along = all_along + head * pad_;
    Vec<T> sum[H][ROWS] = {};
    for (int64_t v = 0; v < pad_; v += V) {
      Vec<T> row[ROWS], d[ROWS];
      CTM_UNROLL for (int r = 0; r < ROWS; ++r) row[r] = load(rows + r * pad_ + v);
      CTM_UNROLL for (int r = 0; r < ROWS; ++r) d[r] = load(drows + r * pad_ + v);
      CTM_UNROLL for (int h = 0; h < H; ++h) {
        const Vec<T> reached = load(backward + h * pad_ + v);
        const Vec<T> x = load(read + h * pad_ + v) * g.forward_scale[head + h];
        const Vec<T> y = reached * g.backward_scale[head + h];
        Vec<T> column = load(columns + h * pad_ + v);
        CTM_UNROLL for (int r = 0; r < ROWS; ++r) {
          const T at = forward[h * pad_ + i + r];
          d[r] += at * x + read[h * pad_ + i + r] * y;
          sum[h][r] += row[r] * reached;
          column += row[r] * at;
        }
        store(columns + h * pad_ + v, column);
      }
      CTM_UNROLL for (int r = 0; r < ROWS; ++r) store(drows + r * pad_ + v, d[r]);
    }
    for (int h = 0; h < H; ++h) sums<T, ROWS>(sum[h], along + h * pad_ + i);
  }

  template <int ROWS>
  CTM_INLINE void recede_block(const T* rows, int64_t i, const T* w, const T* p, T* drows, T* dw,
                               T* dp) const {
    Vec<T> made[ROWS] = {}, lost[ROWS] = {};
    for (int r = 0; r < ROWS; ++r) {
      drows[r * pad_ + i + r] = 0;
      clear(drows + r * pad_ + slots_, pad_ - slots_);
    }
    for (int64_t v = 0; v < pad_; v += V) {
      const Vec<T> other = load(w + v), last = load(p + v);
      Vec<T> column = load(dw + v), latest = load(dp + v);
      CTM_UNROLL for (int r = 0; r < ROWS; ++r) {
        const Vec<T> d = load(drows + r * pad_ + v), old = d * load(rows + r * pad_ + v);
        made[r] += d * last;
        lost[r] += old;
        column -= old;
        latest += d * w[i + r];
        store(drows + r * pad_ + v, d * ((T(1) - w[i + r]) - other));
      }
      store(dw + v, column);
      store(dp + v, latest);
    }
    T along[ROWS], across[ROWS];
    sums<T, ROWS>(made, along);
    sums<T, ROWS>(lost, across);
    for (int r = 0; r < ROWS; ++r) dw[i + r] += along[r] - across[r];
  }

  int64_t slots_, pad_;
};

}  // namespace ctm::CTM_LEVEL
