// A Neural Turing Machine, step by step (see cell.h). For cell_cpu.cpp alone, compiled with it once per SIMD
// level.
#pragma once

#include "cell_net.h"
#include "ntm_machine.h"

namespace ctm::CTM_LEVEL {
namespace {

// The memory of a sample lies in one of two places, and each step writes the other one.
class NtmCell final : public RecurrentCell {
 public:
  NtmCell(const CellNet& net, Arena<float>& a)
      : net_(net), heads_(net.heads()), variant_(variant(net)), machine_{heads_, variant_} {
    const CellSizes& n = net.n;
    for (const CellNet::LayerMap& layer : net.layers)
      seen_.push_back(a.take(n.batch * layer.recurrent.inputs));
    cell_ = a.take(net.lstm() ? n.layers * n.batch * n.width : 0);
    constant_ = a.take(n.batch * net.gates());
    product_ = a.take(n.batch * net.gates());
    known_ = a.take(n.batch * known_size());
    vector_ = a.take(n.batch * net.interface_size());
    scratch_ = machine_.record(a);
    for (int64_t i = 0; i < 2 * n.batch; ++i) {
      float *memory = a.take(machine_.row(n.slot_width)), *weights = a.take(machine_.row(heads_.heads()));
      float* lengths = a.take(machine_.plane.padded);
      places_.push_back({memory, weights, {lengths, a.take(machine_.plane.padded)}});
    }
  }

  int64_t step(int64_t rows, const float* x, float* output, int32_t*, float*) override {
    apply(net_.from_input, rows, x, net_.n.inputs, constant_);
    for (size_t l = 0; l < seen_.size(); ++l) layer(rows, l);
    to_interface(rows);
    for (int64_t b = 0; b < rows; ++b) {
      machine_.step(vector_ + b * net_.interface_size(), record(b, side_), record(b, 1 - side_), reads(b));
      feed_back(b);
    }
    side_ = 1 - side_;
    to_output(rows, output);
    return rows;
  }

  void set_state(int64_t rows, const CellState<const float>& from) override {
    const CellSizes& n = net_.n;
    const int64_t plane = n.slot_width * n.slots, reading = n.read * n.slots, writing = n.write * n.slots;
    side_ = 0;
    for (int64_t b = 0; b < rows; ++b) {
      const float* memory = from.memory ? from.memory + b * plane : net_.memory;
      const float* read = from.read_weights ? from.read_weights + b * reading : net_.read_weights;
      const float* write = from.write_weights ? from.write_weights + b * writing : net_.write_weights;
      machine_.start(record(b, 0), {memory, 0, 1, n.slots}, {read, write, 0, 0}, 0);
      copy(net_.read_size(), from.reads ? from.reads + b * net_.read_size() : net_.reads, reads(b));
      feed_back(b);
    }
    for (int64_t i = 0; i < n.layers * rows; ++i) {
      const size_t l = static_cast<size_t>(i / rows);
      copy_or_clear(net_.kept(), from.hidden ? from.hidden + i * n.width : nullptr, hidden(l, i % rows));
      if (net_.lstm())
        copy_or_clear(n.width, from.cell ? from.cell + i * n.width : nullptr, cell(l, i % rows));
    }
  }

  void get_state(int64_t rows, const CellState<float>& to) const override {
    const CellSizes& n = net_.n;
    for (int64_t b = 0; b < rows; ++b) {
      const Place& from = places_[place(b, side_)];
      unpad(n.slot_width, n.slots, from.memory, to.memory + b * n.slot_width * n.slots);
      unpad(n.read, n.slots, from.weights, to.read_weights + b * n.read * n.slots);
      unpad(n.write, n.slots, from.weights + machine_.row(n.read), to.write_weights + b * n.write * n.slots);
      copy(net_.read_size(), reads(b), to.reads + b * net_.read_size());
    }
    for (int64_t i = 0; i < n.layers * rows; ++i) {
      const size_t l = static_cast<size_t>(i / rows);
      if (net_.kept()) copy(n.width, hidden(l, i % rows), to.hidden + i * n.width);
      if (net_.lstm()) copy(n.width, cell(l, i % rows), to.cell + i * n.width);
    }
  }

 private:
  struct Place {
    float *memory, *weights;
    Lengths<float> lengths;
  };

  static NtmVariant variant(const CellNet& net) {
    const CellSizes& n = net.n;
    return {static_cast<NtmOrder>(n.order),
            static_cast<NtmCosine>(n.cosine),
            static_cast<NtmActivation>(n.key),
            static_cast<NtmActivation>(n.add),
            n.one_plus != 0,
            n.shared != 0,
            true,
            net.numbers.eps};
  }

  int64_t known_size() const { return net_.n.width + net_.read_size(); }
  float* known(int64_t b) const { return known_ + b * known_size(); }  // [top layer | reads]
  float* reads(int64_t b) const { return known(b) + net_.n.width; }
  float* seen(size_t l, int64_t b) const { return seen_[l] + b * net_.layers[l].recurrent.inputs; }
  float* hidden(size_t l, int64_t b) const { return seen(l, b) + net_.layers[l].below; }
  float* cell(size_t l, int64_t b) const {
    return cell_ + (static_cast<int64_t>(l) * net_.n.batch + b) * net_.n.width;
  }
  static size_t place(int64_t b, int64_t side) { return static_cast<size_t>(2 * b + side); }
  Record<float> record(int64_t b, int64_t side) const {
    const Place& at = places_[place(b, side)];
    return {at.memory, at.weights, at.lengths, scratch_.heads, scratch_.stages};
  }

  void layer(int64_t rows, size_t l) const {
    net_.recur(l, rows, seen_[l], product_);
    for (int64_t b = 0; b < rows; ++b) {
      float* above = l + 1 < seen_.size() ? seen(l + 1, b) : known(b);
      const float* constant = l ? net_.layers[l].recurrent.bias : constant_ + b * net_.gates();
      net_.activate(constant, nullptr, product_ + b * net_.gates(), cell(l, b), above);
      copy(net_.kept(), above, hidden(l, b));
    }
  }

  void to_interface(int64_t rows) const {
    const int64_t size = net_.interface_size();
    if (!net_.n.split) apply(net_.interface, rows, known_, known_size(), vector_);
    for (int64_t b = 0; net_.n.split && b < rows; ++b) copy(size, known(b), vector_ + b * size);
    clamp(rows * size, vector_);
  }

  void to_output(int64_t rows, float* output) const {
    const int64_t size = net_.n.outputs;
    if (!net_.n.split) apply(net_.output, rows, known_, known_size(), output);
    for (int64_t b = 0; net_.n.split && b < rows; ++b)
      scale_row(size, *net_.temperature, known(b) + net_.interface_size(), output + b * size, false);
    clamp(rows * size, output);
  }

  void clamp(int64_t count, float* x) const {
    const Vec<float> high = splat(net_.numbers.clip), low = -high;
    over_row<float>(count, [&](int64_t i, int k) {
      Vec<float> v = load_part(x + i, k);
      v = v > high ? high : v;
      store_part(x + i, v < low ? low : v, k);
    });
  }

  void feed_back(int64_t b) const {
    const float* from = reads(b) + (net_.n.split ? net_.read_size() - net_.n.slot_width : 0);
    copy(net_.n.fed_back, from, seen(0, b));
  }

  const CellNet& net_;
  const NtmSizes heads_;
  const NtmVariant variant_;
  const Machine<float> machine_;
  std::vector<float*> seen_;  // of every layer: (B, recurrent inputs)
  float *cell_, *constant_, *product_, *known_, *vector_;
  Record<float> scratch_;      // of the sample at work
  std::vector<Place> places_;  // two of every sample
  int64_t side_ = 0;
};

}  // namespace
}  // namespace ctm::CTM_LEVEL
