#include "bindings.h"

namespace ctm {
namespace {

// T, B, N, W, R, V, S
using NtmShape = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t>;
// order, cosine, key, add, one plus, shared, raw, eps
using NtmChoice = std::tuple<int, int, int, int, bool, bool, bool, double>;
using Strided = std::tuple<Address, int64_t, int64_t, int64_t>;     // address, batch, slot, column
using Stepped = std::tuple<Address, int64_t, int64_t>;              // address, step, batch
using WeightPair = std::tuple<Address, Address, int64_t, int64_t>;  // read, write, steps of both

NtmVariant ntm_variant(const NtmChoice& c) {
  const auto& [order, cosine, key, add, one_plus, shared, raw, eps] = c;
  return {static_cast<NtmOrder>(order),
          static_cast<NtmCosine>(cosine),
          static_cast<NtmActivation>(key),
          static_cast<NtmActivation>(add),
          one_plus,
          shared,
          raw,
          eps};
}
template <class T>
NtmMemory<const T> ntm_memory(const Strided& m) {
  return {at<const T>(std::get<0>(m)), std::get<1>(m), std::get<2>(m), std::get<3>(m)};
}
template <class T>
NtmInterface<T> ntm_interface(const Stepped& i) {
  return {at<const T>(std::get<0>(i)), std::get<1>(i), std::get<2>(i)};
}
template <class T>
NtmWeights<T> ntm_weights(const WeightPair& w) {
  return {at<T>(std::get<0>(w)), at<T>(std::get<1>(w)), std::get<2>(w), std::get<3>(w)};
}

}  // namespace

void bind_ntm(py::module_& m) {
  m.def("ntm_forward",
        [](int type, const NtmShape& n, const NtmChoice& v, const Strided& memory, const Stepped& interface,
           const WeightPair& before, Address reads, Address after, const WeightPair& weights, int threads) {
          py::gil_scoped_release release;
          CTM_DISPATCH(type, *kernels().ntm,
                       k.forward(made<NtmSizes>(n), ntm_variant(v), ntm_memory<T>(memory),
                                 ntm_interface<T>(interface), ntm_weights<const T>(before), at<T>(reads),
                                 at<T>(after), ntm_weights<T>(weights), threads));
        });
  m.def("ntm_backward",
        [](int type, const NtmShape& n, const NtmChoice& v, const Strided& memory, const Stepped& interface,
           const WeightPair& before, Address dreads, const Strided& dafter, const WeightPair& dweights,
           Address dbefore, Address dinterface, const WeightPair& dprevious, int threads) {
          py::gil_scoped_release release;
          CTM_DISPATCH(type, *kernels().ntm,
                       k.backward(made<NtmSizes>(n), ntm_variant(v), ntm_memory<T>(memory),
                                  ntm_interface<T>(interface), ntm_weights<const T>(before),
                                  at<const T>(dreads), ntm_memory<T>(dafter), ntm_weights<const T>(dweights),
                                  at<T>(dbefore), at<T>(dinterface), ntm_weights<T>(dprevious), threads));
        });
  m.def("ntm_read",
        [](int type, const NtmShape& n, const Strided& memory, Address weights, Address reads, int threads) {
          py::gil_scoped_release release;
          CTM_DISPATCH(
              type, *kernels().ntm,
              k.read(made<NtmSizes>(n), ntm_memory<T>(memory), at<const T>(weights), at<T>(reads), threads));
        });
  m.def("ntm_read_backward", [](int type, const NtmShape& n, const Strided& memory, Address weights,
                                Address dreads, Address dmemory, Address dweights, int threads) {
    py::gil_scoped_release release;
    CTM_DISPATCH(type, *kernels().ntm,
                 k.read_backward(made<NtmSizes>(n), ntm_memory<T>(memory), at<const T>(weights),
                                 at<const T>(dreads), at<T>(dmemory), at<T>(dweights), threads));
  });
  m.def("ntm_write", [](int type, const NtmShape& n, const Strided& memory, Address weights, Address erase,
                        Address add, Address after, int threads) {
    py::gil_scoped_release release;
    CTM_DISPATCH(type, *kernels().ntm,
                 k.write(made<NtmSizes>(n), ntm_memory<T>(memory), at<const T>(weights), at<const T>(erase),
                         at<const T>(add), at<T>(after), threads));
  });
  m.def("ntm_write_backward", [](int type, const NtmShape& n, const Strided& memory, Address weights,
                                 Address erase, Address add, const Strided& dafter, Address dmemory,
                                 Address dweights, Address derase, Address dadd, int threads) {
    py::gil_scoped_release release;
    CTM_DISPATCH(type, *kernels().ntm,
                 k.write_backward(made<NtmSizes>(n), ntm_memory<T>(memory), at<const T>(weights),
                                  at<const T>(erase), at<const T>(add), ntm_memory<T>(dafter), at<T>(dmemory),
                                  at<T>(dweights), at<T>(derase), at<T>(dadd), threads));
  });
}

}  // namespace ctm
