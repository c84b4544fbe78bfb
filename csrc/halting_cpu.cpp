#include "halting.h"

#include <algorithm>
#include <cmath>

#include "halting_rows.h"
#include "parallel.h"

namespace ctm::CTM_LEVEL {
namespace {

// Calls row(r, sample, ends) for every row that its sample needs, in order; total as after the row before.
template <class T, class Row>
CTM_INLINE void walk(const HaltingSizes& n, T threshold, bool force, const T* h, const int32_t* samples,
                     int32_t* left, T* total, const Row& row) {
  for (int64_t r = 0; r < n.rows; ++r) ++left[samples[r]];
  for (int64_t r = 0; r < n.rows; ++r) {
    const int32_t b = samples[r];
    if (left[b] < 0) continue;
    const T sum = total[b] + h[r];
    const bool ends = sum >= threshold || (force && left[b] == 1);
    row(r, b, ends);
    total[b] = sum;
    left[b] = ends ? -1 : left[b] - 1;
  }
}

template <class T>
void weights(const HaltingSizes& n, T threshold, bool force, const T* h, const int32_t* samples,
             int32_t* left, T* total, T* weight, T* ponder) {
  std::fill_n(weight, n.rows, T(0));
  walk(n, threshold, force, h, samples, left, total, [&](int64_t r, int32_t b, bool ends) {
    weight[r] = ends ? T(1) - total[b] : h[r];
    ponder[b] += T(1) + (ends ? weight[r] : T(0));
  });
}

// The remainder falls by as much as a probability before it grows.
template <class T>
void weights_backward(const HaltingSizes& n, T threshold, bool force, const T* h, const int32_t* samples,
                      const T* dweight, const T* dponder, int32_t* left, T* total, int32_t* end, T* dh) {
  std::fill_n(dh, n.rows, T(0));
  std::fill_n(end, n.batch, -1);
  walk(n, threshold, force, h, samples, left, total, [&](int64_t r, int32_t b, bool ends) {
    dh[r] = ends ? T(0) : dweight[r];
    if (ends) end[b] = static_cast<int32_t>(r);
  });
  for (int64_t r = 0; r < n.rows; ++r) {
    const int32_t b = samples[r];
    if (r < end[b]) dh[r] -= dweight[end[b]] + dponder[b];
  }
}

// Threads share the columns, so that a sample's rows are added in order.
constexpr int64_t kColumns = 128;

template <class T>
void mean(const HaltingSizes& n, const T* values, const T* weight, const int32_t* samples, T* out,
          int threads) {
  parallel_for(threads, (n.width + kColumns - 1) / kColumns, [&](int64_t block) {
    const int64_t j = block * kColumns, width = std::min(kColumns, n.width - j);
    for (int64_t r = 0; r < n.rows; ++r)
      scale_row(width, weight[r], values + r * n.width + j, out + samples[r] * n.width + j, true);
  });
}

template <class T>
void mean_backward(const HaltingSizes& n, const T* values, const T* weight, const int32_t* samples,
                   const T* dout, T* dvalues, T* dweight, int threads) {
  parallel_for(threads, n.rows, [&](int64_t r) {
    const T* grad = dout + samples[r] * n.width;
    dweight[r] = dot_row(n.width, values + r * n.width, grad);
    scale_row(n.width, weight[r], grad, dvalues + r * n.width, false);
  });
}

int64_t gate_width(const RecurrenceSizes& n) { return n.lstm ? 4 * n.width : n.width; }

template <class T>
int64_t begin(const RecurrenceSizes& n, HaltingSpan span, const Recurrence<T>& s, int threads) {
  const int64_t plane = n.batch * n.width, at = span.t * plane;
  const bool* mask = s.mask ? s.mask + span.t * n.batch : nullptr;
  int64_t count = 0;
  for (int64_t b = 0; b < n.batch; ++b) {
    const bool padded = mask && !mask[b];
    s.total[b] = s.ponder[span.t * n.batch + b] = T(0);
    s.steps[span.t * n.batch + b] = 0;
    if (padded) continue;
    s.sample[span.start + count] = static_cast<int32_t>(b);
    s.parent[span.start + count++] = -1;
  }
  parallel_for(threads, count, [&](int64_t i) {
    const T* from = s.hidden + at + s.sample[span.start + i] * n.width;
    std::copy_n(from, n.width, s.previous + (span.start + i) * n.width);
  });
  for (int64_t b = 0; mask && b < n.batch; ++b) {
    if (mask[b]) continue;
    const int64_t row = at + b * n.width;
    std::copy_n(s.hidden + row, n.width, s.hidden + row + plane);
    if (n.lstm) std::copy_n(s.cell + row, n.width, s.cell + row + plane);
  }
  return count;
}

// The cell before row r.
template <class T>
CTM_INLINE const T* cell_before(const RecurrenceSizes& n, int64_t t, const Recurrence<T>& s, int64_t r) {
  return s.parent[r] < 0 ? s.cell + (t * n.batch + s.sample[r]) * n.width
                         : s.row_cell + s.parent[r] * n.width;
}

// Cell, halting probability and weight of row r, added to its sample's mean. next is 0 where it goes on.
template <class T>
void advance(const RecurrenceSizes& n, int64_t t, int64_t r, bool last, T threshold, const Recurrence<T>& s) {
  const int64_t g = gate_width(n), b = s.sample[r], at = t * n.batch + b;
  const bool first = s.parent[r] < 0;
  const T *input = s.input + at * g, *flag = first ? s.flag : nullptr;
  T *hidden = s.row_hidden + r * n.width, *cell = s.row_cell + r * n.width;
  if (n.lstm) {
    lstm_cell(n.width, input, flag, cell_before(n, t, s, r), s.gates + r * g, cell, hidden);
  } else {
    rnn_cell(n.width, input, flag, hidden);
  }
  const auto [p, w, ends] = judge(n.width, hidden, s.halting, *s.bias, s.total[b], threshold, last);
  const int64_t mean = (at + n.batch) * n.width;
  scale_row(n.width, w, hidden, s.hidden + mean, !first);
  if (n.lstm) scale_row(n.width, w, cell, s.cell + mean, !first);
  s.probability[r] = p, s.weight[r] = w, s.next[r] = ends ? -1 : 0;
  s.total[b] += p, s.steps[at] += 1;
  s.ponder[at] = static_cast<T>(s.steps[at]) + (ends ? w : T(0));
}

template <class T>
int64_t substep(const RecurrenceSizes& n, HaltingSpan span, bool last, T threshold, const Recurrence<T>& s,
                int threads) {
  parallel_for(threads, span.count,
               [&](int64_t i) { advance(n, span.t, span.start + i, last, threshold, s); });
  const int64_t after = span.start + span.count;
  int64_t count = 0;
  for (int64_t r = span.start; r < after; ++r) {
    if (s.next[r] < 0) continue;
    s.sample[after + count] = s.sample[r];
    s.parent[after + count] = static_cast<int32_t>(r);
    s.next[r] = static_cast<int32_t>(after + count++);
  }
  parallel_for(threads, count, [&](int64_t i) {
    const T* from = s.row_hidden + s.parent[after + i] * n.width;
    std::copy_n(from, n.width, s.previous + (after + i) * n.width);
  });
  return count;
}

// Adds a row's gradient of the gates to that of its input.
template <class T>
CTM_INLINE void pass(T* gates, T* input, Vec<T> grad, int n) {
  store_part(gates, grad, n);
  store_part(input, load_part(input, n) + grad, n);
}

// What reaches a row: its share of the mean's gradient, and what comes from the rows after it.
template <class T>
struct Reaching {
  T weight, logit;                             // of the mean; gradient of the halting unit's output
  const T *mean_hidden, *mean_cell, *halting;  // (H)
  const T *given, *next_hidden, *next_cell;    // (H) or null

  CTM_INLINE Vec<T> hidden(int64_t j, int n) const {
    Vec<T> grad = weight * load_part(mean_hidden + j, n) + logit * load_part(halting + j, n);
    if (given) grad += load_part(given + j, n);
    return next_hidden ? grad + load_part(next_hidden + j, n) : grad;
  }
  CTM_INLINE Vec<T> cell(int64_t j, int n) const {
    const Vec<T> grad = weight * load_part(mean_cell + j, n);
    return next_cell ? grad + load_part(next_cell + j, n) : grad;
  }
};

template <class T>
CTM_INLINE void rnn_backward(int64_t width, const Reaching<T>& from, const T* hidden, T* dgates, T* dinput) {
  for (int64_t j = 0; j < width; j += V<T>) {
    const int n = part<T>(width, j);
    const Vec<T> h = load_part(hidden + j, n);
    pass(dgates + j, dinput + j, from.hidden(j, n) * (T(1) - h * h), n);
  }
}

template <class T>
CTM_INLINE void lstm_backward(int64_t width, const Reaching<T>& from, const T* gates, const T* cell,
                              const T* before, T* dgates, T* dinput, T* dbefore) {
  for (int64_t j = 0; j < width; j += V<T>) {
    const int n = part<T>(width, j);
    const Vec<T> i = load_part(gates + j, n), f = load_part(gates + width + j, n);
    const Vec<T> g = load_part(gates + 2 * width + j, n), o = load_part(gates + 3 * width + j, n);
    const Vec<T> c = tanh(load_part(cell + j, n)), dh = from.hidden(j, n);
    const Vec<T> dc = from.cell(j, n) + dh * o * (T(1) - c * c);
    pass(dgates + j, dinput + j, dc * g * i * (T(1) - i), n);
    pass(dgates + width + j, dinput + width + j, dc * load_part(before + j, n) * f * (T(1) - f), n);
    pass(dgates + 2 * width + j, dinput + 2 * width + j, dc * i * (T(1) - g * g), n);
    pass(dgates + 3 * width + j, dinput + 3 * width + j, dh * c * o * (T(1) - o), n);
    store_part(dbefore + j, dc * f, n);
  }
}

template <class T>
void retreat(const RecurrenceSizes& n, HaltingSpan span, int64_t i, const Recurrence<T>& s,
             const RecurrenceGrad<T>& d) {
  const int64_t r = span.start + i, b = s.sample[r], g = gate_width(n), at = span.t * n.batch + b;
  const T *hidden = s.row_hidden + r * n.width, *cell = s.row_cell + r * n.width;
  const T *mean_hidden = d.hidden + b * n.width, *mean_cell = d.cell + b * n.width;
  T dweight = dot_row(n.width, hidden, mean_hidden) + (d.weight ? d.weight[r] : T(0));
  if (n.lstm) dweight += dot_row(n.width, cell, mean_cell);
  T dp = 0;
  if (s.next[r] < 0) {
    d.last[b] = dweight;
  } else {
    dp = dweight - d.last[b] - d.ponder[at];
  }
  const T p = s.probability[r];
  d.logit[r] = dp * p * (T(1) - p);
  const int64_t next = (s.next[r] - span.start - span.count) * n.width;
  const T* given = d.row_hidden ? d.row_hidden + r * n.width : nullptr;
  const bool on = s.next[r] >= 0;
  const Reaching<T> from{s.weight[r],
                         d.logit[r],
                         mean_hidden,
                         mean_cell,
                         s.halting,
                         given,
                         on ? d.next_hidden + next : nullptr,
                         on && n.lstm ? d.next_cell + next : nullptr};
  T *dgates = d.gates + r * g, *dinput = d.input + at * g;
  if (n.lstm) {
    lstm_backward(n.width, from, s.gates + r * g, cell, cell_before(n, span.t, s, r), dgates, dinput,
                  d.cell_before + i * n.width);
  } else {
    rnn_backward(n.width, from, hidden, dgates, dinput);
  }
}

template <class T>
void substep_backward(const RecurrenceSizes& n, HaltingSpan span, const Recurrence<T>& s,
                      const RecurrenceGrad<T>& d, int threads) {
  parallel_for(threads, span.count, [&](int64_t i) { retreat(n, span, i, s, d); });
}

template <class T>
constexpr HaltingTable<T> table = {weights<T>, weights_backward<T>, mean<T>, mean_backward<T>, begin<T>,
                                   substep<T>, substep_backward<T>};

}  // namespace

extern const HaltingKernels halting_kernels = {table<float>, table<double>};

}  // namespace ctm::CTM_LEVEL
