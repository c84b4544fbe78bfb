// Where a block of the tick kernel keeps what, and which rows are its own; the same on the host and the
// device.
#pragma once

#include "ticks.h"

namespace ctm::cuda {

constexpr int kTickThreads = 512;
constexpr int kTickWarps = kTickThreads / 32;

// Offsets into a block's shared memory, in floats.
struct TickLayout {
  int stride, action_stride;  // of a sample's row in `operand` and in `action`
  int operand, spare, action, alpha, beta, room, scores, ring, hidden;
  // Of resident weights; -1 where they are read from global memory.
  int query, nlm, stages[kMaxStages];
  int floats, resident;  // in all, and of resident weights
  bool own_query;        // every block that attends computes the query of its head
};

struct TickArguments {
  TickModel model;
  TickData data;
  TickLayout at;
  bool cluster;
};
static_assert(sizeof(TickArguments) <= 4096, "kernel arguments of older drivers");

struct Slice {
  int begin, end;
};

#ifdef __CUDACC__
#define CTM_BOTH __host__ __device__
#else
#define CTM_BOTH
#endif

CTM_BOTH inline Slice slice_of(int units, int block, int blocks) {
  return {static_cast<int>(int64_t{units} * block / blocks),
          static_cast<int>(int64_t{units} * (block + 1) / blocks)};
}

CTM_BOTH inline int largest_slice(int units, int blocks) { return (units + blocks - 1) / blocks; }

CTM_BOTH inline int rows_per_unit(const TickStage& s) { return s.kind == StageKind::glu ? 2 : 1; }

// Floats of a neuron's model.
CTM_BOTH inline int nlm_columns(const TickSizes& n) {
  return 2 * n.hidden * (n.memory + 1) + (n.deep ? 2 * (n.hidden + 1) : 0);
}

// Scratch in global memory, in floats: the barrier's counter first, then queries, heads' outputs and what the
// linear map of each stage put out.
constexpr int kCounterFloats = 64;
CTM_BOTH inline int64_t scratch_query() { return kCounterFloats; }
CTM_BOTH inline int64_t scratch_heads(const TickSizes& n) {
  return kCounterFloats + int64_t{n.batch} * n.width;
}
CTM_BOTH inline int64_t scratch_stage(const TickModel& m, int stage) {
  int64_t at = kCounterFloats + 2 * int64_t{m.n.batch} * m.n.width;
  for (int s = 0; s < stage; ++s) at += int64_t{m.n.batch} * m.stages[s].width;
  return at;
}

}  // namespace ctm::cuda
