#include "bindings.h"

namespace ctm {
namespace {

using DncShape = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, bool>;  // DncSizes
using DncFlags = std::tuple<double, double, bool, bool>;                                  // DncOptions
template <size_t N>
using Addresses = std::array<Address, N>;  // in the order of the struct's members

}  // namespace

void bind_dnc(py::module_& m) {
  m.def("dnc_forward", [](int type, const DncShape& n, const DncFlags& options, const Addresses<8>& in,
                          const Addresses<7>& out, Address columns, int threads) {
    py::gil_scoped_release release;
    CTM_DISPATCH(type, *kernels().dnc,
                 k.forward(made<DncSizes>(n), made<DncOptions>(options), pointers<DncInputs<T>>(in),
                           pointers<DncOutputs<T>>(out), at<int64_t>(columns), threads));
  });
  m.def("dnc_backward",
        [](int type, const DncShape& n, const DncFlags& options, const Addresses<8>& in,
           const Addresses<7>& saved, const Addresses<7>& gradients, const Addresses<7>& found, int threads) {
          py::gil_scoped_release release;
          CTM_DISPATCH(type, *kernels().dnc,
                       k.backward(made<DncSizes>(n), made<DncOptions>(options), pointers<DncInputs<T>>(in),
                                  pointers<DncOutputs<T>>(saved), pointers<DncOutputs<const T>>(gradients),
                                  pointers<DncGradients<T>>(found), threads));
        });
  m.def("dnc_link_forward", [](int type, const DncShape& n, const Addresses<8>& in, const Addresses<4>& out,
                               Address columns, int threads) {
    py::gil_scoped_release release;
    CTM_DISPATCH(type, *kernels().dnc,
                 k.link_forward(made<DncSizes>(n), pointers<DncInputs<T>>(in), pointers<DncLinks<T>>(out),
                                at<int64_t>(columns), threads));
  });
  m.def("dnc_link_backward", [](int type, const DncShape& n, const Addresses<8>& in,
                                const Addresses<4>& gradients, const Addresses<7>& found, int threads) {
    py::gil_scoped_release release;
    CTM_DISPATCH(
        type, *kernels().dnc,
        k.link_backward(made<DncSizes>(n), pointers<DncInputs<T>>(in), pointers<DncLinks<const T>>(gradients),
                        pointers<DncGradients<T>>(found), threads));
  });
  m.def("dnc_allocation",
        [](int type, const DncShape& n, double eps, Address usage, Address out, int threads) {
          py::gil_scoped_release release;
          CTM_DISPATCH(type, *kernels().dnc,
                       k.allocation(made<DncSizes>(n), eps, at<T>(usage), at<T>(out), threads));
        });
  m.def("dnc_allocation_backward", [](int type, const DncShape& n, double eps, Address usage,
                                      Address gradient, Address dusage, int threads) {
    py::gil_scoped_release release;
    CTM_DISPATCH(
        type, *kernels().dnc,
        k.allocation_backward(made<DncSizes>(n), eps, at<T>(usage), at<T>(gradient), at<T>(dusage), threads));
  });
}

}  // namespace ctm
