// The kernels of the SIMD level in use.
#pragma once

#include <string>
#include <vector>

#include "attend.h"
#include "dnc.h"
#include "halting.h"
#include "linear.h"
#include "nlm.h"
#include "ntm.h"
#include "synapse.h"
#include "sync.h"

namespace ctm {

struct Kernels {
  const char* level;
  const DncKernels* dnc;
  const NlmKernels* nlm;
  const SyncKernels* sync;
  const NtmKernels* ntm;
  const AttendKernels* attend;
  const SynapseKernels* synapse;
  const LinearKernels* linear;
  const HaltingKernels* halting;
};

// Best level that this CPU runs, capped by the environment variable CTM_FAST_SIMD when the module is loaded.
const Kernels& kernels();
// Levels that were compiled and that this CPU runs, slowest first.
std::vector<std::string> levels();
// False where `name` is not one of levels().
bool set_level(const std::string& name);

}  // namespace ctm
