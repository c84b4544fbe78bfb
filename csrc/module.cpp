// Python module _C: kernels over raw addresses. Every argument was checked by ctm_fast.ops before it comes
// here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <map>

#include "dispatch.h"

namespace py = pybind11;

namespace ctm {
namespace {

using Address = uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

Storage storage(int code) { return static_cast<Storage>(code); }

// Calls fn<float>() or fn<double>() for a Storage code.
#define CTM_DISPATCH(code, table, ...)   \
  [&] {                                  \
    if (storage(code) == Storage::f64) { \
      using T = double;                  \
      const auto& k = (table).f64;       \
      __VA_ARGS__;                       \
    } else {                             \
      using T = float;                   \
      const auto& k = (table).f32;       \
      __VA_ARGS__;                       \
    }                                    \
  }()

using NlmShape = std::tuple<int64_t, int64_t, int64_t, int64_t, bool>;  // rows, D, M, H, deep
using NlmStride = std::tuple<int64_t, int64_t, int64_t>;                // row, neuron, memory
using Drop = std::tuple<double, uint64_t, int64_t>;                     // p, seed, first row

NlmSizes sizes(const NlmShape& s) {
  return {std::get<0>(s), std::get<1>(s), std::get<2>(s), std::get<3>(s), std::get<4>(s)};
}
NlmStrides strides(const NlmStride& s) { return {std::get<0>(s), std::get<1>(s), std::get<2>(s)}; }
template <class D>
D dropout(const Drop& d) {
  return {std::get<0>(d), std::get<1>(d), std::get<2>(d)};
}

void bind_nlm(py::module_& m) {
  m.def("nlm_packed_size", [](int type, const NlmShape& n) {
    const NlmKernels& k = *kernels().nlm;
    return k.packed_size(sizes(n), storage(type) == Storage::f64 ? k.lanes_f64 : k.lanes_f32);
  });
  m.def("nlm_pack", [](int type, const NlmShape& n, Address w1, Address b1, double t1, Address w2, Address b2,
                       double t2, Address packed, int threads) {
    py::gil_scoped_release release;
    kernels().nlm->pack(storage(type), sizes(n), at<void>(w1), at<void>(b1), t1, at<void>(w2), at<void>(b2),
                        t2, at<void>(packed), threads);
  });
  m.def("nlm_unpack",
        [](int type, const NlmShape& n, Address packed, Address grad, double t1, double t2, Address w1,
           Address b1, Address t1_grad, Address w2, Address b2, Address t2_grad, int threads) {
          py::gil_scoped_release release;
          kernels().nlm->unpack(storage(type), sizes(n), at<void>(packed), at<void>(grad), t1, t2,
                                at<void>(w1), at<void>(b1), at<void>(t1_grad), at<void>(w2), at<void>(b2),
                                at<void>(t2_grad), threads);
        });
  m.def("nlm_forward", [](int type, const NlmShape& n, const Drop& drop, Address packed, Address x,
                          const NlmStride& s, Address z, int64_t z_row, int threads) {
    py::gil_scoped_release release;
    kernels().nlm->forward(storage(type), sizes(n), dropout<NlmDropout>(drop), at<void>(packed), at<void>(x),
                           strides(s), at<void>(z), z_row, threads);
  });
  m.def("nlm_backward", [](int type, const NlmShape& n, const Drop& drop, Address packed, Address x,
                           const NlmStride& s, Address dz, int64_t dz_row, Address dx,
                           const NlmStride& dx_strides, Address dpacked, int threads) {
    py::gil_scoped_release release;
    kernels().nlm->backward(storage(type), sizes(n), dropout<NlmDropout>(drop), at<void>(packed), at<void>(x),
                            strides(s), at<void>(dz), dz_row, at<void>(dx), strides(dx_strides),
                            at<void>(dpacked), threads);
  });
}

using SyncShape = std::tuple<int64_t, int64_t, int64_t, int64_t, bool>;  // T, B, D, P, last
using SyncStride = std::tuple<int64_t, int64_t>;                         // tick, row

SyncSizes sizes_of(const SyncShape& s) {
  return {std::get<0>(s), std::get<1>(s), std::get<2>(s), std::get<3>(s), std::get<4>(s)};
}
SyncStrides strides_of(const SyncStride& s) { return {std::get<0>(s), std::get<1>(s)}; }

void bind_sync(py::module_& m) {
  m.def("sync_roots", [](int type, const SyncShape& n, Address r, Address beta0, Address beta, Address root) {
    CTM_DISPATCH(type, *kernels().sync,
                 k.roots(sizes_of(n), at<T>(r), at<T>(beta0), at<T>(beta), at<T>(root)));
  });
  m.def("sync_forward", [](int type, const SyncShape& n, Address z, const SyncStride& zs, Address left,
                           Address right, Address r, Address root, Address alpha, Address s, int threads) {
    py::gil_scoped_release release;
    CTM_DISPATCH(type, *kernels().sync,
                 k.forward(sizes_of(n), at<T>(z), strides_of(zs), at<int32_t>(left), at<int32_t>(right),
                           at<T>(r), at<T>(root), at<T>(alpha), at<T>(s), threads));
  });
  m.def("sync_backward", [](int type, const SyncShape& n, Address z, const SyncStride& zs, Address left,
                            Address right, Address r, Address root, Address alpha0, Address beta0, Address ds,
                            Address galpha, Address dz, const SyncStride& dzs, Address dr, Address dbeta,
                            int threads) {
    py::gil_scoped_release release;
    CTM_DISPATCH(type, *kernels().sync,
                 k.backward(sizes_of(n), at<T>(z), strides_of(zs), at<int32_t>(left), at<int32_t>(right),
                            at<T>(r), at<T>(root), at<T>(alpha0), at<T>(beta0), at<T>(ds), at<T>(galpha),
                            at<T>(dz), strides_of(dzs), at<T>(dr), at<T>(dbeta), threads));
  });
}

using AttendShape = std::tuple<int64_t, int64_t, int64_t, int64_t>;  // B, heads, width, L

AttendSizes attend_sizes(const AttendShape& s) {
  return {std::get<0>(s), std::get<1>(s), std::get<2>(s), std::get<3>(s)};
}

void bind_attend(py::module_& m) {
  m.def("attend_forward",
        [](int type, const AttendShape& n, const Drop& drop, Address q, int64_t q_row, Address keys,
           Address values, Address weights, Address o, int64_t o_row, int threads) {
          py::gil_scoped_release release;
          CTM_DISPATCH(type, *kernels().attend,
                       k.forward(attend_sizes(n), dropout<AttendDropout>(drop), at<T>(q), q_row, at<T>(keys),
                                 at<T>(values), at<T>(weights), at<T>(o), o_row, threads));
        });
  m.def("attend_backward", [](int type, const AttendShape& n, const Drop& drop, Address q, int64_t q_row,
                              Address keys, Address values, Address grad, int64_t grad_row, Address dropped,
                              Address weights, Address scores, Address dq, int64_t dq_row, int threads) {
    py::gil_scoped_release release;
    CTM_DISPATCH(type, *kernels().attend,
                 k.backward(attend_sizes(n), dropout<AttendDropout>(drop), at<T>(q), q_row, at<T>(keys),
                            at<T>(values), at<T>(grad), grad_row, at<T>(dropped), at<T>(weights),
                            at<T>(scores), at<T>(dq), dq_row, threads));
  });
}

using NormArgs = std::tuple<Address, Address, double>;  // weight, bias, eps
using NormGradArgs = std::tuple<Address, Address>;      // (kRowGroups, width) each
using RowArgs = std::tuple<int64_t, int64_t>;           // rows, width

Rows rows_of(const RowArgs& r) { return {std::get<0>(r), std::get<1>(r)}; }
template <class T>
Norm<T> norm_of(const NormArgs& n) {
  return {at<T>(std::get<0>(n)), at<T>(std::get<1>(n)), static_cast<T>(std::get<2>(n))};
}
template <class T>
NormGrad<T> norm_grad_of(const NormGradArgs& n) {
  return {at<T>(std::get<0>(n)), at<T>(std::get<1>(n))};
}

void bind_synapse(py::module_& m) {
  m.def("glu_norm", [](int type, const RowArgs& n, Address x, int64_t x_row, const NormArgs& norm, Address y,
                       int64_t y_row, int threads) {
    py::gil_scoped_release release;
    CTM_DISPATCH(type, *kernels().synapse,
                 k.glu_norm(rows_of(n), at<T>(x), x_row, norm_of<T>(norm), at<T>(y), y_row, threads));
  });
  m.def("silu_norm", [](int type, const RowArgs& n, Address x, int64_t x_row, const NormArgs& norm, Address y,
                        int64_t y_row, int threads) {
    py::gil_scoped_release release;
    CTM_DISPATCH(type, *kernels().synapse,
                 k.silu_norm(rows_of(n), at<T>(x), x_row, norm_of<T>(norm), at<T>(y), y_row, threads));
  });
  m.def("skip_norm",
        [](int type, const RowArgs& n, Address x, int64_t x_row, const NormArgs& norm, Address skip,
           int64_t skip_row, const NormArgs& outer, Address y, int64_t y_row, int threads) {
          py::gil_scoped_release release;
          CTM_DISPATCH(type, *kernels().synapse,
                       k.skip_norm(rows_of(n), at<T>(x), x_row, norm_of<T>(norm), at<T>(skip), skip_row,
                                   norm_of<T>(outer), at<T>(y), y_row, threads));
        });
  m.def("glu_norm_backward",
        [](int type, const RowArgs& n, Address x, int64_t x_row, const NormArgs& norm, Address dy,
           int64_t dy_row, Address dx, int64_t dx_row, const NormGradArgs& grad, int threads) {
          py::gil_scoped_release release;
          CTM_DISPATCH(type, *kernels().synapse,
                       k.glu_norm_backward(rows_of(n), at<T>(x), x_row, norm_of<T>(norm), at<T>(dy), dy_row,
                                           at<T>(dx), dx_row, norm_grad_of<T>(grad), threads));
        });
  m.def("silu_norm_backward",
        [](int type, const RowArgs& n, Address x, int64_t x_row, const NormArgs& norm, Address dy,
           int64_t dy_row, Address dx, int64_t dx_row, const NormGradArgs& grad, int threads) {
          py::gil_scoped_release release;
          CTM_DISPATCH(type, *kernels().synapse,
                       k.silu_norm_backward(rows_of(n), at<T>(x), x_row, norm_of<T>(norm), at<T>(dy), dy_row,
                                            at<T>(dx), dx_row, norm_grad_of<T>(grad), threads));
        });
  m.def("skip_norm_backward", [](int type, const RowArgs& n, Address x, int64_t x_row, const NormArgs& norm,
                                 Address skip, int64_t skip_row, const NormArgs& outer, Address dy,
                                 int64_t dy_row, Address dx, int64_t dx_row, Address dskip, int64_t dskip_row,
                                 const NormGradArgs& grad, const NormGradArgs& outer_grad, int threads) {
    py::gil_scoped_release release;
    CTM_DISPATCH(
        type, *kernels().synapse,
        k.skip_norm_backward(rows_of(n), at<T>(x), x_row, norm_of<T>(norm), at<T>(skip), skip_row,
                             norm_of<T>(outer), at<T>(dy), dy_row, at<T>(dx), dx_row, at<T>(dskip), dskip_row,
                             norm_grad_of<T>(grad), norm_grad_of<T>(outer_grad), threads));
  });
  m.def("dropout", [](int type, const RowArgs& n, const Drop& drop, Address x, int64_t x_row, Address y,
                      int64_t y_row, int threads) {
    py::gil_scoped_release release;
    const auto [p, seed, first_row] = drop;
    CTM_DISPATCH(type, *kernels().synapse,
                 k.dropout(rows_of(n), p, seed, first_row, at<T>(x), x_row, at<T>(y), y_row, threads));
  });
}

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

// Asks for huge pages under a large buffer that nothing has touched yet: fewer faults and address
// translations.
void advise_huge(Address address, size_t bytes) {
#ifdef __linux__
  constexpr Address kPage = 4096;
  const Address first = (address + kPage - 1) / kPage * kPage, last = (address + bytes) / kPage * kPage;
  if (last > first) madvise(at<void>(first), last - first, MADV_HUGEPAGE);
#else
  (void)address, (void)bytes;
#endif
}

std::map<std::string, std::string> build_info() {
  return {
      {"version", CTM_VERSION},
      {"compiler", __VERSION__},
      {"cplusplus", std::to_string(__cplusplus)},
#ifdef _OPENMP
      {"openmp", std::to_string(_OPENMP)},
#else
      {"openmp", "none"},
#endif
  };
}

}  // namespace
}  // namespace ctm

PYBIND11_MODULE(_C, m) {
  m.attr("ROW_GROUPS") = ctm::kRowGroups;
  m.def("build_info", ctm::build_info);
  m.def("advise_huge", ctm::advise_huge);
  m.def("simd_level", [] { return std::string(ctm::kernels().level); });
  m.def("simd_levels", ctm::levels);
  m.def("set_simd_level", [](const std::string& name) {
    if (!ctm::set_level(name))
      throw py::value_error("set_simd_level: level must be one of simd_levels(), got " + name);
  });
  ctm::bind_nlm(m);
  ctm::bind_sync(m);
  ctm::bind_attend(m);
  ctm::bind_synapse(m);
  ctm::bind_linear(m);
}
