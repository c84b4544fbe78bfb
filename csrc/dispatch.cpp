#include "dispatch.h"

#include <atomic>
#include <cstdlib>

#define CTM_DECLARE(family, Family) extern const Family##Kernels family##_kernels;
#define CTM_ADDRESS(family, Family) , &family##_kernels
#define CTM_TABLE(level)                                  \
  namespace ctm::level {                                  \
  CTM_FAMILIES(CTM_DECLARE)                               \
  const Kernels all = {#level CTM_FAMILIES(CTM_ADDRESS)}; \
  }

CTM_TABLE(baseline)
#ifdef CTM_HAS_avx2
CTM_TABLE(avx2)
#endif
#ifdef CTM_HAS_avx512
CTM_TABLE(avx512)
#endif

namespace ctm {
namespace {

std::vector<Kernels> available() {
  std::vector<Kernels> found = {baseline::all};
#ifdef CTM_HAS_avx2
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(avx2::all);
#endif
#ifdef CTM_HAS_avx512
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    found.push_back(avx512::all);
#endif
  return found;
}

const std::vector<Kernels>& table() {
  static const std::vector<Kernels> all = available();
  return all;
}

size_t first_choice() {
  const char* cap = std::getenv("CTM_FAST_SIMD");
  for (size_t i = 0; cap && i < table().size(); ++i)
    if (std::string(cap) == table()[i].level) return i;
  return table().size() - 1;
}

std::atomic<size_t>& chosen() {
  static std::atomic<size_t> index{first_choice()};
  return index;
}

}  // namespace

const Kernels& kernels() { return table()[chosen().load(std::memory_order_relaxed)]; }

std::vector<std::string> levels() {
  std::vector<std::string> names;
  for (const Kernels& k : table()) names.emplace_back(k.level);
  return names;
}

bool set_level(const std::string& name) {
  for (size_t i = 0; i < table().size(); ++i)
    if (name == table()[i].level) {
      chosen().store(i);
      return true;
    }
  return false;
}

}  // namespace ctm
