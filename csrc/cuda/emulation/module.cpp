// Python module _cuda_emulation: the launchers of _cuda over the emulated runtime, for tests on the CPU.
#include <pybind11/stl.h>
#include "../modules.h"

#include "cuda_runtime.h"
#include "faults.h"

PYBIND11_MODULE(_cuda_emulation, m) {
  ctm::cuda::bind_kernels(m);
  m.def("schedule", ctm::emulation::schedule);
  m.def("run_unordered", ctm::emulation::run_unordered);
  m.def("run_outside", ctm::emulation::run_outside);
  m.def("run_divergent", ctm::emulation::run_divergent);
  m.def("set_limits", [](int multiprocessors, int shared, int major) {
    ctm::emulation::limits() = {multiprocessors, shared, major};
  });
}
