#include "bindings.h"

namespace ctm {
namespace {

using SyncShape = std::tuple<int64_t, int64_t, int64_t, int64_t, bool>;  // T, B, D, P, last
using SyncStride = std::tuple<int64_t, int64_t>;                         // tick, row

}  // namespace

void bind_sync(py::module_& m) {
  m.def("sync_roots", [](int type, const SyncShape& n, Address r, Address beta0, Address beta, Address root) {
    CTM_DISPATCH(type, *kernels().sync,
                 k.roots(made<SyncSizes>(n), at<T>(r), at<T>(beta0), at<T>(beta), at<T>(root)));
  });
  m.def("sync_forward", [](int type, const SyncShape& n, Address z, const SyncStride& zs, Address left,
                           Address right, Address r, Address root, Address alpha, Address s, int threads) {
    py::gil_scoped_release release;
    CTM_DISPATCH(type, *kernels().sync,
                 k.forward(made<SyncSizes>(n), at<T>(z), made<SyncStrides>(zs), at<int32_t>(left),
                           at<int32_t>(right), at<T>(r), at<T>(root), at<T>(alpha), at<T>(s), threads));
  });
  m.def("sync_backward",
        [](int type, const SyncShape& n, Address z, const SyncStride& zs, Address left, Address right,
           Address r, Address root, Address alpha0, Address beta0, Address ds, Address galpha, Address dz,
           const SyncStride& dzs, Address dr, Address dbeta, int threads) {
          py::gil_scoped_release release;
          CTM_DISPATCH(
              type, *kernels().sync,
              k.backward(made<SyncSizes>(n), at<T>(z), made<SyncStrides>(zs), at<int32_t>(left),
                         at<int32_t>(right), at<T>(r), at<T>(root), at<T>(alpha0), at<T>(beta0), at<T>(ds),
                         at<T>(galpha), at<T>(dz), made<SyncStrides>(dzs), at<T>(dr), at<T>(dbeta), threads));
        });
}

}  // namespace ctm
