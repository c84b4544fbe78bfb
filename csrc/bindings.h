// What every binding file shares. Arguments are raw addresses and sizes: ctm_fast.ops has checked them
// before.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "dispatch.h"

namespace ctm {

namespace py = pybind11;

using Address = uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

inline Storage storage(int code) { return static_cast<Storage>(code); }

// Runs the statement with T and k (the table's kernels) for a Storage code: float or double.
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

using Drop = std::tuple<double, uint64_t, int64_t>;  // p, seed, first row

template <class D>
D dropout(const Drop& d) {
  return {std::get<0>(d), std::get<1>(d), std::get<2>(d)};
}

// One a kernel family, in <family>_module.cpp.
void bind_dnc(py::module_&);
void bind_nlm(py::module_&);
void bind_sync(py::module_&);
void bind_ntm(py::module_&);
void bind_attend(py::module_&);
void bind_synapse(py::module_&);
void bind_linear(py::module_&);
void bind_halting(py::module_&);

}  // namespace ctm
