#include "bindings.h"

namespace ctm {
namespace {

using HaltingShape = std::tuple<int64_t, int64_t, int64_t>;  // R, B, D
using RecurrenceShape = std::tuple<int64_t, int64_t, bool>;  // B, H, lstm
using Span = std::tuple<int64_t, int64_t, int64_t>;          // t, start, count
using RecurrenceArgs = std::array<Address, 19>;              // the members of Recurrence, in order
using RecurrenceGradArgs = std::array<Address, 12>;          // those of RecurrenceGrad

HaltingSizes halting_sizes(const HaltingShape& s) { return {std::get<0>(s), std::get<1>(s), std::get<2>(s)}; }
RecurrenceSizes recurrence_sizes(const RecurrenceShape& s) {
  return {std::get<0>(s), std::get<1>(s), std::get<2>(s)};
}
HaltingSpan span_of(const Span& s) { return {std::get<0>(s), std::get<1>(s), std::get<2>(s)}; }

template <class T>
Recurrence<T> recurrence_of(const RecurrenceArgs& a) {
  return {at<bool>(a[0]), at<T>(a[1]),        at<T>(a[2]),        at<T>(a[3]),       at<T>(a[4]),
          at<T>(a[5]),    at<T>(a[6]),        at<T>(a[7]),        at<T>(a[8]),       at<int64_t>(a[9]),
          at<T>(a[10]),   at<T>(a[11]),       at<T>(a[12]),       at<T>(a[13]),      at<T>(a[14]),
          at<T>(a[15]),   at<int32_t>(a[16]), at<int32_t>(a[17]), at<int32_t>(a[18])};
}

template <class T>
RecurrenceGrad<T> recurrence_grad_of(const RecurrenceGradArgs& a) {
  return {at<T>(a[0]), at<T>(a[1]), at<T>(a[2]), at<T>(a[3]), at<T>(a[4]),  at<T>(a[5]),
          at<T>(a[6]), at<T>(a[7]), at<T>(a[8]), at<T>(a[9]), at<T>(a[10]), at<T>(a[11])};
}

}  // namespace

void bind_halting(py::module_& m) {
  m.def("halting_weights", [](int type, const HaltingShape& n, double threshold, bool force, Address h,
                              Address samples, Address left, Address total, Address weight, Address ponder) {
    CTM_DISPATCH(type, *kernels().halting,
                 k.weights(halting_sizes(n), static_cast<T>(threshold), force, at<T>(h), at<int32_t>(samples),
                           at<int32_t>(left), at<T>(total), at<T>(weight), at<T>(ponder)));
  });
  m.def("halting_weights_backward",
        [](int type, const HaltingShape& n, double threshold, bool force, Address h, Address samples,
           Address dweight, Address dponder, Address left, Address total, Address end, Address dh) {
          CTM_DISPATCH(type, *kernels().halting,
                       k.weights_backward(halting_sizes(n), static_cast<T>(threshold), force, at<T>(h),
                                          at<int32_t>(samples), at<T>(dweight), at<T>(dponder),
                                          at<int32_t>(left), at<T>(total), at<int32_t>(end), at<T>(dh)));
        });
  m.def("halting_mean", [](int type, const HaltingShape& n, Address values, Address weight, Address samples,
                           Address out, int threads) {
    py::gil_scoped_release release;
    CTM_DISPATCH(
        type, *kernels().halting,
        k.mean(halting_sizes(n), at<T>(values), at<T>(weight), at<int32_t>(samples), at<T>(out), threads));
  });
  m.def("halting_mean_backward",
        [](int type, const HaltingShape& n, Address values, Address weight, Address samples, Address dout,
           Address dvalues, Address dweight, int threads) {
          py::gil_scoped_release release;
          CTM_DISPATCH(type, *kernels().halting,
                       k.mean_backward(halting_sizes(n), at<T>(values), at<T>(weight), at<int32_t>(samples),
                                       at<T>(dout), at<T>(dvalues), at<T>(dweight), threads));
        });
  m.def("halting_begin", [](int type, const RecurrenceShape& n, const Span& span, const RecurrenceArgs& args,
                            int threads) {
    py::gil_scoped_release release;
    return CTM_DISPATCH(type, *kernels().halting,
                        return k.begin(recurrence_sizes(n), span_of(span), recurrence_of<T>(args), threads));
  });
  m.def("halting_substep", [](int type, const RecurrenceShape& n, const Span& span, bool last,
                              double threshold, const RecurrenceArgs& args, int threads) {
    py::gil_scoped_release release;
    return CTM_DISPATCH(type, *kernels().halting,
                        return k.substep(recurrence_sizes(n), span_of(span), last, static_cast<T>(threshold),
                                         recurrence_of<T>(args), threads));
  });
  m.def("halting_substep_backward",
        [](int type, const RecurrenceShape& n, const Span& span, const RecurrenceArgs& args,
           const RecurrenceGradArgs& grads, int threads) {
          py::gil_scoped_release release;
          CTM_DISPATCH(type, *kernels().halting,
                       k.substep_backward(recurrence_sizes(n), span_of(span), recurrence_of<T>(args),
                                          recurrence_grad_of<T>(grads), threads));
        });
}

}  // namespace ctm
