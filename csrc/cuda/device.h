// What the CUDA module knows of itself and of the GPUs it finds. No torch, no pybind11.
#pragma once

#include <string>
#include <vector>

namespace ctm::cuda {

struct Device {
  std::string name;
  int major, minor;    // compute capability
  std::string reason;  // why the compiled kernels cannot run there; empty where they can
};

// Number of GPUs that the driver shows; 0 without a driver.
int device_count();

// Those GPUs, in the driver's order, each tried with an empty kernel. Empty without a GPU or without a
// driver.
std::vector<Device> devices();

// Why device_count() is 0; empty where it is not.
std::string no_device_reason();

// CUDA versions as 1000 * major + 10 * minor: of the runtime linked in, and the newest that the driver
// supports (0 without a driver).
int runtime_version();
int driver_version();

// Compute capabilities compiled for, such as {"8.0", "9.0"}; newer GPUs take the last one's PTX.
std::vector<std::string> architectures();

}  // namespace ctm::cuda
