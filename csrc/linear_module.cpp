#include "bindings.h"

namespace ctm {

void bind_linear(py::module_& m) {
  m.def("linear_packed_size", [](int type, int64_t outputs, int64_t inputs) {
    return storage(type) == Storage::f64 ? kernels().linear->f64.packed_size(outputs, inputs)
                                         : kernels().linear->f32.packed_size(outputs, inputs);
  });
  m.def("linear_pack", [](int type, int64_t outputs, int64_t inputs, Address w, int64_t w_out, int64_t w_in,
                          Address packed, int threads) {
    py::gil_scoped_release release;
    CTM_DISPATCH(type, *kernels().linear,
                 k.pack(outputs, inputs, at<T>(w), w_out, w_in, at<T>(packed), threads));
  });
  m.def("linear", [](int type, int64_t rows, int64_t outputs, int64_t inputs, Address x, int64_t x_row,
                     Address packed, Address init, int64_t init_row, Address y, int64_t y_row, int threads) {
    py::gil_scoped_release release;
    CTM_DISPATCH(type, *kernels().linear,
                 k.run({rows, outputs, inputs}, at<T>(x), x_row, at<T>(packed), at<T>(init), init_row,
                       at<T>(y), y_row, threads));
  });
}

}  // namespace ctm
