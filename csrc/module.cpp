// Python module _C: the kernels' bindings, and what concerns the whole library.
#include "bindings.h"

#include <map>

#include "pages.h"

namespace ctm {
namespace {

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
  namespace py = pybind11;
  m.attr("ROW_GROUPS") = ctm::kRowGroups;
  m.def("build_info", ctm::build_info);
  m.def("advise_huge", ctm::advise_huge);
  m.def("simd_level", [] { return std::string(ctm::kernels().level); });
  m.def("simd_levels", ctm::levels);
  m.def("set_simd_level", [](const std::string& name) {
    if (!ctm::set_level(name))
      throw py::value_error("set_simd_level: level must be one of simd_levels(), got " + name);
  });
#define CTM_BIND(family, Family) ctm::bind_##family(m);
  CTM_FAMILIES(CTM_BIND)
}
