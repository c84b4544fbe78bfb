// The packed weights of a cell, and one pass through its layers (see cell.h). For cell_cpu.cpp alone,
// compiled with it once per SIMD level.
#pragma once

#include <vector>

#include "cell.h"
#include "engine_tick.h"
#include "halting_rows.h"

namespace ctm::CTM_LEVEL {
namespace {

struct CellNet {
  struct LayerMap {
    Map recurrent;
    int64_t below;  // inputs that are not its own hidden state
  };

  const CellSizes n;
  const CellNumbers numbers;
  std::vector<LayerMap> layers;
  Map from_input, interface, output;
  const float *temperature, *memory, *reads, *read_weights, *write_weights, *flag, *halting, *halting_bias;

  CellNet(const CellSizes& sizes, const CellNumbers& numbers_, const CellLayer* given, const CellWeights& w,
          Packer& p)
      : n(sizes), numbers(numbers_) {
    for (int64_t l = 0; l < n.layers; ++l) {
      const int64_t below = l ? n.width : n.fed_back;
      layers.push_back({p.map(gates(), below + kept(), {given[l].recurrent, nullptr}, given[l].bias), below});
    }
    const int64_t vector = n.split ? 0 : interface_size();
    const int64_t joined = n.split ? 0 : n.outputs;
    from_input = p.map(gates(), n.inputs, {w.from_input, nullptr}, given[0].bias);
    interface = p.map(vector, n.width, {w.interface, nullptr}, w.interface_bias);
    output = p.map(joined, n.width + read_size(), {w.output, nullptr}, w.output_bias);
    temperature = p.keep(n.split ? 1 : 0, w.temperature);
    memory = p.keep(n.slot_width * n.slots, w.memory);
    reads = p.keep(read_size(), w.reads);
    read_weights = p.keep(n.read * n.slots, w.read_weights);
    write_weights = p.keep(n.write * n.slots, w.write_weights);
    flag = p.keep(n.most ? gates() : 0, w.flag);
    halting = p.keep(n.most ? n.width : 0, w.halting);
    halting_bias = p.keep(n.most ? 1 : 0, w.halting_bias);
  }

  bool lstm() const { return n.states == 2; }
  int64_t gates() const { return lstm() ? 4 * n.width : n.width; }
  int64_t kept() const { return n.states ? n.width : 0; }  // of a hidden state
  int64_t read_size() const { return n.read * n.slot_width; }
  NtmSizes heads() const { return {1, 1, n.slots, n.slot_width, n.read, n.write, n.shift}; }
  int64_t interface_size() const { return n.slots ? heads().interface() : 0; }

  // What layer l adds to its constant, (rows, G).
  void recur(size_t l, int64_t rows, const float* seen, float* product) const {
    const Map& m = layers[l].recurrent;
    apply(m, rows, 0, {seen, m.inputs, nullptr, 0, product, m.outputs});
  }

  // One row of a layer from its recurrent product, which it overwrites as the cell state; `first` (G) adds
  // the flag of a first tick where it is not null.
  void activate(const float* constant, const float* first, float* product, float* cell, float* hidden) const {
    if (lstm()) return lstm_cell(n.width, constant, first, cell, product, cell, hidden);
    rnn_cell(n.width, constant, first, product);
    copy(n.width, product, hidden);
  }
};

struct RecurrentCell {  // what run, get_state and set_state of cell.h call
  virtual ~RecurrentCell() = default;
  virtual int64_t step(int64_t rows, const float* x, float* output, int32_t* ticks, float* remainder) = 0;
  virtual void set_state(int64_t rows, const CellState<const float>&) = 0;
  virtual void get_state(int64_t rows, const CellState<float>&) const = 0;
};

inline void copy_or_clear(int64_t count, const float* from, float* to) {
  from ? copy(count, from, to) : clear(to, count);
}

}  // namespace
}  // namespace ctm::CTM_LEVEL
