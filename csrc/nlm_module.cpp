#include "bindings.h"

namespace ctm {
namespace {

using NlmShape = std::tuple<int64_t, int64_t, int64_t, int64_t, bool>;  // rows, D, M, H, deep
using NlmStride = std::tuple<int64_t, int64_t, int64_t>;                // row, neuron, memory

}  // namespace

void bind_nlm(py::module_& m) {
  m.def("nlm_packed_size", [](int type, const NlmShape& n) {
    return kernels().nlm->packed_size(storage(type), made<NlmSizes>(n));
  });
  m.def("nlm_pack", [](int type, const NlmShape& n, Address w1, Address b1, double t1, Address w2, Address b2,
                       double t2, Address packed, int threads) {
    py::gil_scoped_release release;
    kernels().nlm->pack(storage(type), made<NlmSizes>(n), at<void>(w1), at<void>(b1), t1, at<void>(w2),
                        at<void>(b2), t2, at<void>(packed), threads);
  });
  m.def("nlm_unpack",
        [](int type, const NlmShape& n, Address packed, Address grad, double t1, double t2, Address w1,
           Address b1, Address t1_grad, Address w2, Address b2, Address t2_grad, int threads) {
          py::gil_scoped_release release;
          kernels().nlm->unpack(storage(type), made<NlmSizes>(n), at<void>(packed), at<void>(grad), t1, t2,
                                at<void>(w1), at<void>(b1), at<void>(t1_grad), at<void>(w2), at<void>(b2),
                                at<void>(t2_grad), threads);
        });
  m.def("nlm_forward", [](int type, const NlmShape& n, const Drop& drop, Address packed, Address x,
                          const NlmStride& s, Address z, int64_t z_row, int threads) {
    py::gil_scoped_release release;
    kernels().nlm->forward(storage(type, Storage::bf16), made<NlmSizes>(n), made<DropoutRows>(drop),
                           at<void>(packed), at<void>(x), made<NlmStrides>(s), at<void>(z), z_row, threads);
  });
  m.def("nlm_direct",
        [](int type, const NlmShape& n, const Drop& drop, Address w1, Address b1, double t1, Address w2,
           Address b2, double t2, Address x, const NlmStride& s, Address z, int64_t z_row, int threads) {
          py::gil_scoped_release release;
          kernels().nlm->direct(storage(type, Storage::bf16), made<NlmSizes>(n), made<DropoutRows>(drop),
                                at<void>(w1), at<void>(b1), t1, at<void>(w2), at<void>(b2), t2, at<void>(x),
                                made<NlmStrides>(s), at<void>(z), z_row, threads);
        });
  m.def("nlm_backward", [](int type, const NlmShape& n, const Drop& drop, Address packed, Address x,
                           const NlmStride& s, Address dz, int64_t dz_row, Address dx,
                           const NlmStride& dx_strides, Address dpacked, int threads) {
    py::gil_scoped_release release;
    kernels().nlm->backward(storage(type, Storage::bf16), made<NlmSizes>(n), made<DropoutRows>(drop),
                            at<void>(packed), at<void>(x), made<NlmStrides>(s), at<void>(dz), dz_row,
                            at<void>(dx), made<NlmStrides>(dx_strides), at<void>(dpacked), threads);
  });
}

}  // namespace ctm
