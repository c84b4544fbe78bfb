#include "bindings.h"

namespace ctm {
namespace {

using AttendShape = std::tuple<int64_t, int64_t, int64_t, int64_t>;  // B, heads, width, L

}  // namespace

void bind_attend(py::module_& m) {
  m.def("attend_forward",
        [](int type, const AttendShape& n, const Drop& drop, Address q, int64_t q_row, Address keys,
           Address values, Address weights, Address o, int64_t o_row, int threads) {
          py::gil_scoped_release release;
          CTM_DISPATCH(type, *kernels().attend,
                       k.forward(made<AttendSizes>(n), made<DropoutRows>(drop), at<T>(q), q_row, at<T>(keys),
                                 at<T>(values), at<T>(weights), at<T>(o), o_row, threads));
        });
  m.def("attend_backward", [](int type, const AttendShape& n, const Drop& drop, Address q, int64_t q_row,
                              Address keys, Address values, Address grad, int64_t grad_row, Address dropped,
                              Address weights, Address scores, Address dq, int64_t dq_row, int threads) {
    py::gil_scoped_release release;
    CTM_DISPATCH(type, *kernels().attend,
                 k.backward(made<AttendSizes>(n), made<DropoutRows>(drop), at<T>(q), q_row, at<T>(keys),
                            at<T>(values), at<T>(grad), grad_row, at<T>(dropped), at<T>(weights),
                            at<T>(scores), at<T>(dq), dq_row, threads));
  });
}

}  // namespace ctm
