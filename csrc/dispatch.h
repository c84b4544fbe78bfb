// The kernels of the SIMD level in use.
#pragma once

#include <string>
#include <vector>

#include "attend.h"
#include "cell.h"
#include "dnc.h"
#include "engine.h"
#include "halting.h"
#include "linear.h"
#include "nlm.h"
#include "ntm.h"
#include "synapse.h"
#include "sync.h"

namespace ctm {

// Calls DO(word, prefix of its types) for every family of kernels: those of csrc/<word>.h and
// <word>_cpu.cpp, bound in <word>_module.cpp.
#define CTM_FAMILIES(DO) \
  DO(nlm, Nlm)           \
  DO(sync, Sync)         \
  DO(ntm, Ntm)           \
  DO(dnc, Dnc)           \
  DO(attend, Attend)     \
  DO(synapse, Synapse)   \
  DO(linear, Linear)     \
  DO(halting, Halting)   \
  DO(engine, Engine)     \
  DO(cell, Cell)

#define CTM_MEMBER(family, Family) const Family##Kernels* family;
struct Kernels {
  const char* level;
  CTM_FAMILIES(CTM_MEMBER)
};
#undef CTM_MEMBER

// Best level that this CPU runs, capped by the environment variable CTM_FAST_SIMD when the module is loaded.
const Kernels& kernels();
// Levels that were compiled and that this CPU runs, slowest first.
std::vector<std::string> levels();
// False where `name` is not one of levels().
bool set_level(const std::string& name);

}  // namespace ctm
