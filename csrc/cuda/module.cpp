// Python module ctm_fast._cuda.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "device.h"
#include "modules.h"

namespace py = pybind11;
using ctm::cuda::Device;

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA half of ctm_fast: which GPUs its kernels can run on, and the kernels.";
  m.attr("__version__") = CTM_VERSION;
  py::class_<Device>(m, "Device", "One GPU that the driver shows.")
      .def_readonly("name", &Device::name)
      .def_property_readonly("capability", [](const Device& d) { return py::make_tuple(d.major, d.minor); })
      .def_readonly("reason", &Device::reason, "Why the kernels cannot run there; empty where they can.");
  m.def("devices", &ctm::cuda::devices, py::call_guard<py::gil_scoped_release>(),
        "Those GPUs, in the driver's order, each tried with an empty kernel.");
  m.def("device_count", &ctm::cuda::device_count, "Number of GPUs that the driver shows.");
  m.def("no_device_reason", &ctm::cuda::no_device_reason, "Why there is no GPU; empty where there is one.");
  m.def("runtime_version", &ctm::cuda::runtime_version, "CUDA runtime linked in: 1000 * major + 10 * minor.");
  m.def("driver_version", &ctm::cuda::driver_version, "Newest CUDA the driver supports; 0 without a driver.");
  m.def("architectures", &ctm::cuda::architectures, "Compute capabilities compiled for; newer GPUs use PTX.");
  ctm::cuda::bind_kernels(m);
}
