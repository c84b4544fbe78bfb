// Dense temporal links of one sample: N rows of P, link[i][j] how far slot i was written after j.
//
//   new[i][j] = (1 - w[i] - w[j]) old[i][j] + w[i] p[j], new[i][i] = 0
#pragma once

#include "dnc_slots.h"

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

  DenseLinks(int64_t slots, int64_t, Arena<T>&) : slots_(slots), pad_(whole<T>(slots)) {}
  Rows take(Arena<T>& arena) const { return arena.take(slots_ * pad_); }

  void read(const T* link, const int64_t*, Rows rows) const {
    if (pad_ == slots_) return copy(slots_ * slots_, link, rows);
    pad(slots_, slots_, link, rows);
  }
  void write(Rows rows, T* link, int64_t*) const {
    if (pad_ == slots_) return copy(slots_ * slots_, rows, link);
    unpad(slots_, slots_, rows, link);
  }

  // `to` may be `from`.
  void advance(Rows from, const T* w, const T* p, Rows to) const {
    const int64_t P = pad_;
    for (int64_t i = 0; i < slots_; ++i, from += P, to += P) {
      const T own = w[i], keep = T(1) - own;
      for (int64_t v = 0; v < P; v += V)
        store(to + v, (keep - load(w + v)) * load(from + v) + own * load(p + v));
      clear_own(i, to);
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

  // A row's own slot, and what lies beyond the last one.
  CTM_INLINE void clear_own(int64_t i, T* row) const {
    row[i] = 0;
    for (int64_t n = slots_; n < pad_; ++n) row[n] = 0;
  }

  template <int ROWS, int H>
  CTM_INLINE void follow_block(const T* rows, int64_t i, const T* read, T* forward, T* backward) const {
    const int64_t P = pad_;
    Vec<T> sum[H][ROWS] = {};
    T own[H][ROWS];
    for (int h = 0; h < H; ++h)
      for (int r = 0; r < ROWS; ++r) own[h][r] = read[h * P + i + r];
    for (int64_t v = 0; v < P; v += V) {
      Vec<T> row[ROWS];
      CTM_UNROLL for (int r = 0; r < ROWS; ++r) row[r] = load(rows + r * P + v);
      CTM_UNROLL for (int h = 0; h < H; ++h) {
        const Vec<T> x = load(read + h * P + v);
        Vec<T> y = load(backward + h * P + v);
        CTM_UNROLL for (int r = 0; r < ROWS; ++r) {
          sum[h][r] += row[r] * x;
          y += row[r] * own[h][r];
        }
        store(backward + h * P + v, y);
      }
    }
    for (int h = 0; h < H; ++h) sums<T, ROWS>(sum[h], forward + h * P + i);
  }

  template <int ROWS, int H>
  CTM_INLINE void retrace_block(Rows all, int64_t i, int64_t head, const T* all_reads, const Followed<T>& g,
                                Rows all_d, T* all_columns, T* all_along) const {
    const int64_t P = pad_;
    const T *rows = all + i * P, *read = all_reads + head * P, *forward = g.forward + head * P,
            *backward = g.backward + head * P;
    T *drows = all_d + i * P, *columns = all_columns + head * P, *along = all_along + head * P;
    Vec<T> sum[H][ROWS] = {};
    T own[H][ROWS], at[H][ROWS], scale[H][2];
    for (int h = 0; h < H; ++h) {
      for (int r = 0; r < ROWS; ++r) own[h][r] = read[h * P + i + r], at[h][r] = forward[h * P + i + r];
      scale[h][0] = g.forward_scale[head + h], scale[h][1] = g.backward_scale[head + h];
    }
    for (int64_t v = 0; v < P; v += V) {
      Vec<T> row[ROWS], d[ROWS];
      CTM_UNROLL for (int r = 0; r < ROWS; ++r) row[r] = load(rows + r * P + v);
      CTM_UNROLL for (int r = 0; r < ROWS; ++r) d[r] = load(drows + r * P + v);
      CTM_UNROLL for (int h = 0; h < H; ++h) {
        const Vec<T> reached = load(backward + h * P + v);
        const Vec<T> x = load(read + h * P + v) * scale[h][0], y = reached * scale[h][1];
        Vec<T> column = load(columns + h * P + v);
        CTM_UNROLL for (int r = 0; r < ROWS; ++r) {
          d[r] += at[h][r] * x + own[h][r] * y;
          sum[h][r] += row[r] * reached;
          column += row[r] * at[h][r];
        }
        store(columns + h * P + v, column);
      }
      CTM_UNROLL for (int r = 0; r < ROWS; ++r) store(drows + r * P + v, d[r]);
    }
    for (int h = 0; h < H; ++h) sums<T, ROWS>(sum[h], along + h * P + i);
  }

  template <int ROWS>
  CTM_INLINE void recede_block(const T* rows, int64_t i, const T* w, const T* p, T* drows, T* dw,
                               T* dp) const {
    const int64_t P = pad_;
    Vec<T> made[ROWS] = {}, lost[ROWS] = {};
    T own[ROWS];
    for (int r = 0; r < ROWS; ++r) {
      own[r] = w[i + r];
      clear_own(i + r, drows + r * P);
    }
    for (int64_t v = 0; v < P; v += V) {
      const Vec<T> other = load(w + v), last = load(p + v);
      Vec<T> column = load(dw + v), latest = load(dp + v);
      CTM_UNROLL for (int r = 0; r < ROWS; ++r) {
        const Vec<T> d = load(drows + r * P + v), old = d * load(rows + r * P + v);
        made[r] += d * last;
        lost[r] += old;
        column -= old;
        latest += d * own[r];
        store(drows + r * P + v, d * ((T(1) - own[r]) - other));
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
