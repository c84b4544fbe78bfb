#include <cuda_runtime.h>

#include "device.h"

namespace ctm::cuda {
namespace {

// Loading it proves that the binary holds code for a GPU.
__global__ void probe() {}

std::string describe(cudaError_t status) { return status == cudaSuccess ? "" : cudaGetErrorString(status); }

int count_devices(cudaError_t* status) {
  int count = 0;
  *status = cudaGetDeviceCount(&count);
  if (*status == cudaSuccess) return count;
  cudaGetLastError();  // clears it: it is reported here, not by the next launch
  return 0;
}

std::string probe_device(int index) {
  cudaError_t status = cudaSetDevice(index);
  cudaFuncAttributes attributes;
  if (status == cudaSuccess) status = cudaFuncGetAttributes(&attributes, probe);
  if (status != cudaSuccess) cudaGetLastError();
  return describe(status);
}

Device read_device(int index) {
  cudaDeviceProp properties;
  const cudaError_t status = cudaGetDeviceProperties(&properties, index);
  if (status != cudaSuccess) return {"unknown", 0, 0, describe(status)};
  return {properties.name, properties.major, properties.minor, probe_device(index)};
}

}  // namespace

int device_count() {
  cudaError_t status;
  return count_devices(&status);
}

std::vector<Device> devices() {
  const int count = device_count();
  std::vector<Device> found;
  if (count == 0) return found;
  int current = 0;
  cudaGetDevice(&current);
  for (int index = 0; index < count; ++index) found.push_back(read_device(index));
  cudaSetDevice(current);
  return found;
}

std::string no_device_reason() {
  cudaError_t status;
  if (count_devices(&status) > 0) return "";
  if (driver_version() == 0) return "no NVIDIA driver";
  return status == cudaSuccess ? "the driver shows no GPU" : describe(status);
}

int runtime_version() { return CUDART_VERSION; }

int driver_version() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

std::vector<std::string> architectures() {
  std::vector<std::string> names;
  for (const int code : {__CUDA_ARCH_LIST__}) {
    names.push_back(std::to_string(code / 100) + "." + std::to_string(code / 10 % 10));
  }
  return names;
}

}  // namespace ctm::cuda
