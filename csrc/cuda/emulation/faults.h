#pragma once

#include <vector>

namespace ctm::emulation {

// A hand-over between threads, with the barrier it needs or without.
std::vector<float> run_unordered(bool barrier);
// Writes behind a block's shared memory.
void run_outside();
// A barrier that half of the threads reach.
void run_divergent();

}  // namespace ctm::emulation
