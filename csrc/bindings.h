// What every binding file shares. Arguments are raw addresses and sizes: ctm_fast.ops has checked them
// before.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <string>
#include <tuple>

#include "dispatch.h"

namespace ctm {

namespace py = pybind11;

using Address = uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

// The struct whose members have these values, in order.
template <class S, class Values>
S made(const Values& values) {
  return std::apply([](auto... value) { return S{value...}; }, values);
}

struct Pointer {  // to whatever a member of a struct points to
  Address address;
  template <class T>
  operator T*() const {
    return at<T>(address);
  }
};

// The struct of pointers whose members have these addresses, in order.
template <class S, size_t N>
S pointers(const std::array<Address, N>& addresses) {
  return std::apply([](auto... address) { return S{Pointer{address}...}; }, addresses);
}

// A code that a kernel took for a larger type would be read beyond the arguments' ends.
inline Storage storage(int code, Storage last = Storage::f64) {
  if (code < 0 || code > static_cast<int>(last))
    throw py::value_error("code must be in [0, " + std::to_string(static_cast<int>(last)) + "], got " +
                          std::to_string(code));
  return static_cast<Storage>(code);
}

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

using Drop = std::tuple<double, uint64_t, int64_t>;  // DropoutRows

#define CTM_BINDER(family, Family) void bind_##family(py::module_&);
CTM_FAMILIES(CTM_BINDER)
#undef CTM_BINDER

}  // namespace ctm
