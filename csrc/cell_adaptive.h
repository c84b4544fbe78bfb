// A recurrent network with adaptive computation time, step by step (see cell.h). For cell_cpu.cpp alone,
// compiled with it once per SIMD level.
#pragma once

#include "cell_net.h"

namespace ctm::CTM_LEVEL {
namespace {

constexpr float kSmallestProbability = 1e-10f;  // of digits: kept away from log(0)

// A row is a sample that still runs within a step; those that go on close ranks behind every tick. Hidden and
// cell state of the samples are where the means over ticks are summed.
class AdaptiveCell final : public RecurrentCell {
 public:
  AdaptiveCell(const CellNet& net, Arena<float>& a) : net_(net) {
    const CellSizes& n = net.n;
    const int64_t states = n.batch * n.width, cells = net.lstm() ? states : 0;
    hidden_ = a.take(states), row_hidden_ = a.take(states);
    cell_ = a.take(cells), row_cell_ = a.take(cells);
    constant_ = a.take(n.batch * net.gates());
    product_ = a.take(n.batch * net.gates());
    digits_ = a.take(n.classes ? n.batch * n.outputs : 0);
    total_ = a.take(n.batch), weight_ = a.take(n.batch);
    id_ = a.take<int32_t>(n.batch), ended_ = a.take<int32_t>(n.batch);
  }

  int64_t step(int64_t rows, const float* x, float* output, int32_t* ticks, float* remainder) override {
    const int64_t batch = rows, C = net_.n.width;
    apply(net_.from_input, rows, x, net_.n.inputs, constant_);
    begin(rows);
    int64_t computed = 0;
    for (int64_t tick = 1; rows > 0; ++tick) {
      net_.recur(0, rows, row_hidden_, product_);
      for (int64_t i = 0; i < rows; ++i) advance(i, tick, ticks, remainder);
      if (net_.n.classes) mix(rows, tick == 1, output);
      computed += rows;
      rows = close_ranks(rows);
    }
    if (net_.n.classes)
      logarithm(batch * net_.n.outputs, output);
    else
      apply(net_.output, batch, hidden_, C, output);
    return computed;
  }

  void set_state(int64_t rows, const CellState<const float>& from) override {
    copy_or_clear(rows * net_.n.width, from.hidden, hidden_);
    if (net_.lstm()) copy_or_clear(rows * net_.n.width, from.cell, cell_);
  }

  void get_state(int64_t rows, const CellState<float>& to) const override {
    copy(rows * net_.n.width, hidden_, to.hidden);
    if (net_.lstm()) copy(rows * net_.n.width, cell_, to.cell);
  }

 private:
  void begin(int64_t rows) const {
    for (int64_t b = 0; b < rows; ++b) id_[b] = static_cast<int32_t>(b);
    clear(total_, rows);
    copy(rows * net_.n.width, hidden_, row_hidden_);
    if (net_.lstm()) copy(rows * net_.n.width, cell_, row_cell_);
  }

  // Row i's cell, and its share of the sample's mean.
  void advance(int64_t i, int64_t tick, int32_t* ticks, float* remainder) const {
    const CellSizes& n = net_.n;
    const int64_t b = id_[i], C = n.width;
    const bool first = tick == 1;
    float *hidden = row_hidden_ + i * C, *cell = row_cell_ + i * C;
    net_.activate(constant_ + b * net_.gates(), first ? net_.flag : nullptr, product_ + i * net_.gates(),
                  cell, hidden);
    const auto [probability, weight, ends] =
        judge(C, hidden, net_.halting, *net_.halting_bias, total_[b], net_.numbers.threshold, tick == n.most);
    scale_row(C, weight, hidden, hidden_ + b * C, !first);
    if (net_.lstm()) scale_row(C, weight, cell, cell_ + b * C, !first);
    total_[b] += probability;
    weight_[i] = weight;
    ended_[i] = ends;
    if (!ends) return;
    ticks[b] = static_cast<int32_t>(tick);
    remainder[b] = weight;
  }

  // Adds the rows' probabilities of digits to their samples' means.
  void mix(int64_t rows, bool first, float* output) const {
    const int64_t O = net_.n.outputs, classes = net_.n.classes;
    apply(net_.output, rows, row_hidden_, net_.n.width, digits_);
    for (int64_t i = 0; i < rows; ++i) {
      float* row = digits_ + i * O;
      for (int64_t at = 0; at < O; at += classes) softmax(classes, row + at);
      scale_row(O, weight_[i], row, output + id_[i] * O, !first);
    }
  }

  void logarithm(int64_t count, float* x) const {
    over_row<float>(count, [&](int64_t i, int k) {
      store_part(x + i, log<float>(load_part(x + i, k) + kSmallestProbability), k);
    });
  }

  int64_t close_ranks(int64_t rows) const {
    const int64_t C = net_.n.width;
    int64_t left = 0;
    for (int64_t i = 0; i < rows; ++i) {
      if (ended_[i]) continue;
      const int64_t to = left++;
      if (to == i) continue;
      id_[to] = id_[i];
      copy(C, row_hidden_ + i * C, row_hidden_ + to * C);
      if (net_.lstm()) copy(C, row_cell_ + i * C, row_cell_ + to * C);
    }
    return left;
  }

  const CellNet& net_;
  float *hidden_, *row_hidden_, *cell_, *row_cell_, *constant_, *product_, *digits_, *total_, *weight_;
  int32_t *id_, *ended_;
};

}  // namespace
}  // namespace ctm::CTM_LEVEL
