#include "cell.h"

#include <memory>

#include "cell_adaptive.h"
#include "cell_ntm.h"
#include "denormals.h"
#include "engine_memory.h"

namespace ctm::CTM_LEVEL {
namespace {

// Weights in one block, and all that a step works in in another.
class Cell {
 public:
  Cell(const CellSizes& n, const CellNumbers& numbers, const CellLayer* layers, const CellWeights& w)
      : weights_(weights_size(n, numbers, layers, w)),
        packer_(weights_.memory.data, WeightType::f32),
        net_(n, numbers, layers, w, packer_),
        work_(work_size(net_)) {
    Arena<float> arena{work_.memory.data};
    machine_ = machine(net_, arena);
    machine_->set_state(n.batch, {});
  }

  EngineRun run(const CellCall& call) {
    const FlushDenormals flush;
    const CellSizes& n = net_.n;
    const int64_t B = call.batch;
    if (!finite(call.steps * B * n.inputs, call.x)) return {false, 0};
    int64_t computed = 0;
    for (int64_t t = 0; t < call.steps; ++t) {
      const int64_t at = n.most ? t * B : 0;
      computed += machine_->step(B, call.x + t * B * n.inputs, call.output + t * B * n.outputs,
                                 call.ticks + at, call.remainder + at);
    }
    machine_->get_state(B, call.state);
    return {true, computed};
  }

  RecurrentCell& state() { return *machine_; }

 private:
  static std::unique_ptr<RecurrentCell> machine(const CellNet& net, Arena<float>& a) {
    if (net.n.most) return std::make_unique<AdaptiveCell>(net, a);
    return std::make_unique<NtmCell>(net, a);
  }
  static int64_t weights_size(const CellSizes& n, const CellNumbers& numbers, const CellLayer* layers,
                              const CellWeights& w) {
    Packer counting(nullptr, WeightType::f32);
    CellNet(n, numbers, layers, w, counting);
    return counting.used();
  }
  static int64_t work_size(const CellNet& net) {
    Arena<float> counting;
    machine(net, counting);
    return counting.used;
  }

  const Pages weights_;
  Packer packer_;
  const CellNet net_;
  const Pages work_;
  std::unique_ptr<RecurrentCell> machine_;
};

void* make(const CellSizes& n, const CellNumbers& numbers, const CellLayer* layers, const CellWeights& w) {
  return new Cell(n, numbers, layers, w);
}

void destroy(void* cell) { delete static_cast<Cell*>(cell); }

EngineRun run(void* cell, const CellCall& call) { return static_cast<Cell*>(cell)->run(call); }

void set_state(void* cell, int64_t batch, const CellState<const float>& from) {
  static_cast<Cell*>(cell)->state().set_state(batch, from);
}

void get_state(void* cell, int64_t batch, const CellState<float>& to) {
  static_cast<Cell*>(cell)->state().get_state(batch, to);
}

}  // namespace

extern const CellKernels cell_kernels = {make, destroy, run, set_state, get_state};

}  // namespace ctm::CTM_LEVEL
