#include "synapse.h"

#include "parallel.h"
#include "synapse_rows.h"

namespace ctm::CTM_LEVEL {
namespace {

// dx of LN at x for the gradient dy (dx may be dy); adds to the group's weight and bias gradients.
template <class T>
void norm_backward_row(int64_t width, const T* x, const Norm<T>& norm, const T* dy, T* dx, T* dweight,
                       T* dbias) {
  const Stats<T> s = statistics(width, x, norm.eps);
  Vec<T> sum{}, along{};
  over_row<T>(width, [&](int64_t i, int n) {
    const Vec<T> hat = (load_part(x + i, n, s.mean) - s.mean) * s.rstd, grad = load_part(dy + i, n);
    store_part(dweight + i, load_part(dweight + i, n) + grad * hat, n);
    store_part(dbias + i, load_part(dbias + i, n) + grad, n);
    const Vec<T> g = grad * load_part(norm.weight + i, n);
    sum += g;
    along += g * hat;
  });
  const T mean = sum_lanes<T>(sum) / static_cast<T>(width),
          slope = sum_lanes<T>(along) / static_cast<T>(width);
  over_row<T>(width, [&](int64_t i, int n) {
    const Vec<T> hat = (load_part(x + i, n) - s.mean) * s.rstd;
    const Vec<T> g = load_part(dy + i, n) * load_part(norm.weight + i, n);
    store_part(dx + i, (g - mean - hat * slope) * s.rstd, n);
  });
}

// Gradient of the normalised value under SiLU, then of LN.
template <class T>
void silu_norm_backward_row(int64_t width, const T* x, const Norm<T>& norm, const T* dy, T* dx, T* dweight,
                            T* dbias) {
  const Stats<T> s = statistics(width, x, norm.eps);
  over_row<T>(width, [&](int64_t i, int n) {
    const Vec<T> value = normalise(x, i, n, s, norm), gate = sigmoid(value);
    store_part(dx + i, load_part(dy + i, n) * gate * (T(1) + value * (T(1) - gate)), n);
  });
  norm_backward_row(width, x, norm, dx, dx, dweight, dbias);
}

template <class T>
void glu_norm_backward_row(int64_t width, const T* x, const Norm<T>& norm, const T* dy, T* dx, T* dweight,
                           T* dbias, T* scratch) {
  gated(width, x, scratch);
  norm_backward_row(width, scratch, norm, dy, scratch, dweight, dbias);
  over_row<T>(width, [&](int64_t i, int n) {
    const Vec<T> a = load_part(x + i, n), gate = sigmoid(load_part(x + width + i, n)),
                 g = load_part(scratch + i, n);
    store_part(dx + i, g * gate, n);
    store_part(dx + width + i, g * a * gate * (T(1) - gate), n);
  });
}

// Rows in kRowGroups fixed groups; body(row, group, scratch of `scratch_rows` * width elements).
template <class T, class Body>
void over_groups(Rows rows, int64_t scratch_rows, int threads, const Body& body) {
  const int64_t groups = rows.count < kRowGroups ? rows.count : kRowGroups;
  const int team = rows.count * rows.width < 8192 ? 1 : threads;
  parallel_for<T>(team, groups, scratch_rows * rows.width, [&](int64_t group, T* scratch) {
    for (int64_t r = group * rows.count / groups; r < (group + 1) * rows.count / groups; ++r)
      body(r, group * rows.width, scratch);
  });
}

template <class T>
void glu_norm(Rows rows, const T* x, int64_t x_row, Norm<T> norm, T* y, int64_t y_row, int threads) {
  over_groups<T>(rows, 1, threads, [&](int64_t r, int64_t, T* scratch) {
    gated(rows.width, x + r * x_row, scratch);
    norm_row(rows.width, scratch, norm, y + r * y_row);
  });
}

template <class T>
void glu_norm_backward(Rows rows, const T* x, int64_t x_row, Norm<T> norm, const T* dy, int64_t dy_row, T* dx,
                       int64_t dx_row, NormGrad<T> grad, int threads) {
  over_groups<T>(rows, 1, threads, [&](int64_t r, int64_t group, T* scratch) {
    glu_norm_backward_row(rows.width, x + r * x_row, norm, dy + r * dy_row, dx + r * dx_row,
                          grad.weight + group, grad.bias + group, scratch);
  });
}

template <class T>
void silu_norm(Rows rows, const T* x, int64_t x_row, Norm<T> norm, T* y, int64_t y_row, int threads) {
  over_groups<T>(rows, 0, threads, [&](int64_t r, int64_t, T*) {
    silu_norm_row(rows.width, x + r * x_row, norm, y + r * y_row);
  });
}

template <class T>
void silu_norm_backward(Rows rows, const T* x, int64_t x_row, Norm<T> norm, const T* dy, int64_t dy_row,
                        T* dx, int64_t dx_row, NormGrad<T> grad, int threads) {
  over_groups<T>(rows, 0, threads, [&](int64_t r, int64_t group, T*) {
    silu_norm_backward_row(rows.width, x + r * x_row, norm, dy + r * dy_row, dx + r * dx_row,
                           grad.weight + group, grad.bias + group);
  });
}

template <class T>
void skip_norm(Rows rows, const T* x, int64_t x_row, Norm<T> norm, const T* skip, int64_t skip_row,
               Norm<T> outer, T* y, int64_t y_row, int threads) {
  over_groups<T>(rows, 1, threads, [&](int64_t r, int64_t, T* scratch) {
    skipped(rows.width, x + r * x_row, norm, skip + r * skip_row, scratch);
    norm_row(rows.width, scratch, outer, y + r * y_row);
  });
}

template <class T>
void skip_norm_backward(Rows rows, const T* x, int64_t x_row, Norm<T> norm, const T* skip, int64_t skip_row,
                        Norm<T> outer, const T* dy, int64_t dy_row, T* dx, int64_t dx_row, T* dskip,
                        int64_t dskip_row, NormGrad<T> grad, NormGrad<T> outer_grad, int threads) {
  over_groups<T>(rows, 1, threads, [&](int64_t r, int64_t group, T* scratch) {
    T* out = dskip + r * dskip_row;
    skipped(rows.width, x + r * x_row, norm, skip + r * skip_row, scratch);
    norm_backward_row(rows.width, scratch, outer, dy + r * dy_row, out, outer_grad.weight + group,
                      outer_grad.bias + group);
    silu_norm_backward_row(rows.width, x + r * x_row, norm, out, dx + r * dx_row, grad.weight + group,
                           grad.bias + group);
  });
}

template <class T>
void dropout(Rows rows, const DropoutRows& d, const T* x, int64_t x_row, T* y, int64_t y_row, int threads) {
  const Dropout drop(d.p, d.seed);
  parallel_for(rows.count * rows.width < 8192 ? 1 : threads, rows.count, [&](int64_t r) {
    const uint32_t key = row_key(d.seed, static_cast<uint64_t>(d.first_row + r));
    over_row<T>(rows.width, [&](int64_t i, int n) {
      const Vec<T> keep = keep_mask<T>(drop, key, static_cast<uint32_t>(i));
      store_part(y + r * y_row + i, load_part(x + r * x_row + i, n) * keep, n);
    });
  });
}

template <class T>
constexpr SynapseTable<T> table = {glu_norm<T>,  glu_norm_backward<T>,  silu_norm<T>, silu_norm_backward<T>,
                                   skip_norm<T>, skip_norm_backward<T>, dropout<T>};

}  // namespace

extern const SynapseKernels synapse_kernels = {table<float>, table<double>};

}  // namespace ctm::CTM_LEVEL
