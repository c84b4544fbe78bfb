#include "linear.h"

#include "linear_tile.h"

namespace ctm::CTM_LEVEL {
namespace {

template <class T>
int64_t packed_size(int64_t outputs, int64_t inputs) {
  return kHeader<T> + panel_count<T>(outputs) * kPanel<T> * inputs;
}

template <class T>
void pack(int64_t outputs, int64_t inputs, const T* w, int64_t w_out, int64_t w_in, T* packed, int threads) {
  T* blocks = new_blocks(packed);
  parallel_for(threads, panel_count<T>(outputs),
               [&](int64_t panel) { pack_panel<T>(panel, outputs, inputs, w, w_out, w_in, blocks); });
}

template <class T>
void run(LinearSizes n, const T* x, int64_t x_row, const T* packed, const T* init, int64_t init_row, T* y,
         int64_t y_row, int threads) {
  constexpr int P = kPanel<T>;
  const T* blocks = blocks_of("linear", packed);
  const int team = n.rows * n.outputs * n.inputs < 65536 ? 1 : threads;
  const Rows<T> rows = {x, x_row, init, init_row, y, y_row};
  parallel_for(team, panel_count<T>(n.outputs), [&](int64_t panel) {
    const int64_t at = panel * P, left = n.outputs - at;
    const Panels<T> weights = {blocks + at * n.inputs, P * n.inputs, nullptr};
    rows_of_panels<T, CTM_ROWS, 1>(0, {n.rows, left < P ? left : P, n.inputs}, rows.at(0, at), weights);
  });
}

template <class T>
constexpr LinearTable<T> table = {packed_size<T>, pack<T>, run<T>};

}  // namespace

extern const LinearKernels linear_kernels = {table<float>, table<double>};

}  // namespace ctm::CTM_LEVEL
