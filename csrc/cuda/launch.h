// What every launcher shares: checked calls, and a device that is current for as long as the guard lives.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace ctm::cuda {

// Throws std::runtime_error "op sizes: what CUDA says" unless the call succeeded.
inline void check(cudaError_t status, const char* op, const std::string& sizes) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // clears it: it is reported here, not by the next launch
  throw std::runtime_error(std::string(op) + " " + sizes + ": CUDA says: " + cudaGetErrorString(status));
}

class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&before_), "device", "(reading the current one)");
    changed_ = before_ != device;  // setting one makes a context there
    if (changed_) check(cudaSetDevice(device), "device", std::to_string(device));
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

}  // namespace ctm::cuda
