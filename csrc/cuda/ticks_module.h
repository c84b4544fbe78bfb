#pragma once

#include <pybind11/pybind11.h>

namespace ctm::cuda {

// Adds plan_ticks, run_ticks and their limits to a module.
void bind_ticks(pybind11::module_& m);

}  // namespace ctm::cuda
