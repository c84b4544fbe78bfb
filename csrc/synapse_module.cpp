#include "bindings.h"

namespace ctm {
namespace {

using NormArgs = std::tuple<Address, Address, double>;  // weight, bias, eps
using NormGradArgs = std::tuple<Address, Address>;      // (kRowGroups, width) each
using RowArgs = std::tuple<int64_t, int64_t>;           // rows, width

template <class T>
Norm<T> norm_of(const NormArgs& n) {
  return {at<T>(std::get<0>(n)), at<T>(std::get<1>(n)), static_cast<T>(std::get<2>(n))};
}
template <class T>
NormGrad<T> norm_grad_of(const NormGradArgs& n) {
  return {at<T>(std::get<0>(n)), at<T>(std::get<1>(n))};
}

}  // namespace

void bind_synapse(py::module_& m) {
  m.def("glu_norm", [](int type, const RowArgs& n, Address x, int64_t x_row, const NormArgs& norm, Address y,
                       int64_t y_row, int threads) {
    py::gil_scoped_release release;
    CTM_DISPATCH(type, *kernels().synapse,
                 k.glu_norm(made<Rows>(n), at<T>(x), x_row, norm_of<T>(norm), at<T>(y), y_row, threads));
  });
  m.def("silu_norm", [](int type, const RowArgs& n, Address x, int64_t x_row, const NormArgs& norm, Address y,
                        int64_t y_row, int threads) {
    py::gil_scoped_release release;
    CTM_DISPATCH(type, *kernels().synapse,
                 k.silu_norm(made<Rows>(n), at<T>(x), x_row, norm_of<T>(norm), at<T>(y), y_row, threads));
  });
  m.def("skip_norm",
        [](int type, const RowArgs& n, Address x, int64_t x_row, const NormArgs& norm, Address skip,
           int64_t skip_row, const NormArgs& outer, Address y, int64_t y_row, int threads) {
          py::gil_scoped_release release;
          CTM_DISPATCH(type, *kernels().synapse,
                       k.skip_norm(made<Rows>(n), at<T>(x), x_row, norm_of<T>(norm), at<T>(skip), skip_row,
                                   norm_of<T>(outer), at<T>(y), y_row, threads));
        });
  m.def("glu_norm_backward",
        [](int type, const RowArgs& n, Address x, int64_t x_row, const NormArgs& norm, Address dy,
           int64_t dy_row, Address dx, int64_t dx_row, const NormGradArgs& grad, int threads) {
          py::gil_scoped_release release;
          CTM_DISPATCH(type, *kernels().synapse,
                       k.glu_norm_backward(made<Rows>(n), at<T>(x), x_row, norm_of<T>(norm), at<T>(dy),
                                           dy_row, at<T>(dx), dx_row, norm_grad_of<T>(grad), threads));
        });
  m.def("silu_norm_backward",
        [](int type, const RowArgs& n, Address x, int64_t x_row, const NormArgs& norm, Address dy,
           int64_t dy_row, Address dx, int64_t dx_row, const NormGradArgs& grad, int threads) {
          py::gil_scoped_release release;
          CTM_DISPATCH(type, *kernels().synapse,
                       k.silu_norm_backward(made<Rows>(n), at<T>(x), x_row, norm_of<T>(norm), at<T>(dy),
                                            dy_row, at<T>(dx), dx_row, norm_grad_of<T>(grad), threads));
        });
  m.def("skip_norm_backward", [](int type, const RowArgs& n, Address x, int64_t x_row, const NormArgs& norm,
                                 Address skip, int64_t skip_row, const NormArgs& outer, Address dy,
                                 int64_t dy_row, Address dx, int64_t dx_row, Address dskip, int64_t dskip_row,
                                 const NormGradArgs& grad, const NormGradArgs& outer_grad, int threads) {
    py::gil_scoped_release release;
    CTM_DISPATCH(
        type, *kernels().synapse,
        k.skip_norm_backward(made<Rows>(n), at<T>(x), x_row, norm_of<T>(norm), at<T>(skip), skip_row,
                             norm_of<T>(outer), at<T>(dy), dy_row, at<T>(dx), dx_row, at<T>(dskip), dskip_row,
                             norm_grad_of<T>(grad), norm_grad_of<T>(outer_grad), threads));
  });
  m.def("dropout", [](int type, const RowArgs& n, const Drop& drop, Address x, int64_t x_row, Address y,
                      int64_t y_row, int threads) {
    py::gil_scoped_release release;
    CTM_DISPATCH(
        type, *kernels().synapse,
        k.dropout(made<Rows>(n), made<DropoutRows>(drop), at<T>(x), x_row, at<T>(y), y_row, threads));
  });
}

}  // namespace ctm
