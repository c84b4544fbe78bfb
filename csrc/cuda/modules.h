// The bindings of every op, for each module that has them. Arguments are raw addresses and sizes: ctm_fast
// has checked them.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

namespace ctm::cuda {

namespace py = pybind11;

using Address = uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

void bind_nlm(py::module_& m);
void bind_ticks(py::module_& m);

inline void bind_kernels(py::module_& m) {
  bind_nlm(m);
  bind_ticks(m);
}

}  // namespace ctm::cuda
