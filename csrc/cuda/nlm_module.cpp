#include <array>

#include "modules.h"
#include "nlm.h"

namespace ctm::cuda {

void bind_nlm(py::module_& m) {
  m.def("nlm_models", nlm_models);
  m.def("nlm_forward", [](const std::array<int, 4>& sizes, Address packed, Address x,
                          const std::array<int64_t, 3>& strides, Address z, int device, Address stream) {
    const auto [rows, neurons, memory, hidden] = sizes;
    py::gil_scoped_release release;
    nlm_forward({rows, neurons, memory, hidden}, at<const float>(packed), at<const float>(x),
                {strides[0], strides[1], strides[2]}, at<float>(z), device, at<void>(stream));
  });
}

}  // namespace ctm::cuda
