#include "bindings.h"

namespace ctm {
namespace {

using HaltingShape = std::tuple<int64_t, int64_t, int64_t>;  // R, B, D
using RecurrenceShape = std::tuple<int64_t, int64_t, bool>;  // B, H, lstm
using Span = std::tuple<int64_t, int64_t, int64_t>;          // t, start, count
using RecurrenceArgs = std::array<Address, 19>;              // the members of Recurrence, in order
using RecurrenceGradArgs = std::array<Address, 12>;          // those of RecurrenceGrad

}  // namespace

void bind_halting(py::module_& m) {
  m.def("halting_weights", [](int type, const HaltingShape& n, double threshold, bool force, Address h,
                              Address samples, Address left, Address total, Address weight, Address ponder) {
    CTM_DISPATCH(
        type, *kernels().halting,
        k.weights(made<HaltingSizes>(n), static_cast<T>(threshold), force, at<T>(h), at<int32_t>(samples),
                  at<int32_t>(left), at<T>(total), at<T>(weight), at<T>(ponder)));
  });
  m.def("halting_weights_backward",
        [](int type, const HaltingShape& n, double threshold, bool force, Address h, Address samples,
           Address dweight, Address dponder, Address left, Address total, Address end, Address dh) {
          CTM_DISPATCH(type, *kernels().halting,
                       k.weights_backward(made<HaltingSizes>(n), static_cast<T>(threshold), force, at<T>(h),
                                          at<int32_t>(samples), at<T>(dweight), at<T>(dponder),
                                          at<int32_t>(left), at<T>(total), at<int32_t>(end), at<T>(dh)));
        });
  m.def("halting_mean", [](int type, const HaltingShape& n, Address values, Address weight, Address samples,
                           Address out, int threads) {
    py::gil_scoped_release release;
    CTM_DISPATCH(type, *kernels().halting,
                 k.mean(made<HaltingSizes>(n), at<T>(values), at<T>(weight), at<int32_t>(samples), at<T>(out),
                        threads));
  });
  m.def("halting_mean_backward", [](int type, const HaltingShape& n, Address values, Address weight,
                                    Address samples, Address dout, Address dvalues, Address dweight,
                                    int threads) {
    py::gil_scoped_release release;
    CTM_DISPATCH(type, *kernels().halting,
                 k.mean_backward(made<HaltingSizes>(n), at<T>(values), at<T>(weight), at<int32_t>(samples),
                                 at<T>(dout), at<T>(dvalues), at<T>(dweight), threads));
  });
  m.def("halting_begin",
        [](int type, const RecurrenceShape& n, const Span& span, const RecurrenceArgs& args, int threads) {
          py::gil_scoped_release release;
          return CTM_DISPATCH(type, *kernels().halting,
                              return k.begin(made<RecurrenceSizes>(n), made<HaltingSpan>(span),
                                             pointers<Recurrence<T>>(args), threads));
        });
  m.def("halting_substep", [](int type, const RecurrenceShape& n, const Span& span, bool last,
                              double threshold, const RecurrenceArgs& args, int threads) {
    py::gil_scoped_release release;
    return CTM_DISPATCH(type, *kernels().halting,
                        return k.substep(made<RecurrenceSizes>(n), made<HaltingSpan>(span), last,
                                         static_cast<T>(threshold), pointers<Recurrence<T>>(args), threads));
  });
  m.def("halting_substep_backward",
        [](int type, const RecurrenceShape& n, const Span& span, const RecurrenceArgs& args,
           const RecurrenceGradArgs& grads, int threads) {
          py::gil_scoped_release release;
          CTM_DISPATCH(
              type, *kernels().halting,
              k.substep_backward(made<RecurrenceSizes>(n), made<HaltingSpan>(span),
                                 pointers<Recurrence<T>>(args), pointers<RecurrenceGrad<T>>(grads), threads));
        });
}

}  // namespace ctm
