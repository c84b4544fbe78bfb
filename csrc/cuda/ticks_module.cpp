#include <array>
#include <tuple>

#include "modules.h"
#include "ticks.h"

namespace ctm::cuda {
namespace {

using Sizes = std::array<int, 11>;  // the members of TickSizes, in order
// kind, width, skip, weight, bias, columns, norm weight, bias, eps, outer weight, bias, eps
using Stage =
    std::tuple<int, int, int, Address, Address, int, Address, Address, float, Address, Address, float>;
using Attention = std::array<Address, 5>;  // query weight, bias, left, right, decay
using Data = std::array<Address, 8>;       // inputs, then the other pointers of TickData in order
using Limits = std::array<int, 3>;         // the members of TickLimits, in order

TickStage stage_of(const Stage& s) {
  const auto& [kind, width, skip, weight, bias, columns, norm, norm_bias, eps, outer, outer_bias, outer_eps] =
      s;
  if (kind < 0 || kind > static_cast<int>(StageKind::skip))
    throw py::value_error("ticks: unknown kind of stage");
  const auto found = static_cast<StageKind>(kind);
  const int rows = found == StageKind::glu ? 2 * width : width;
  return {found,
          width,
          skip,
          {at<const float>(weight), at<const float>(bias), rows, columns},
          {at<const float>(norm), at<const float>(norm_bias), eps},
          {at<const float>(outer), at<const float>(outer_bias), outer_eps}};
}

TickSizes sizes_of(const Sizes& s, size_t stages) {
  const auto& [ticks, batch, neurons, memory, hidden, deep, count, width, heads, tokens, pairs] = s;
  if (stages != static_cast<size_t>(count) || stages > kMaxStages) {
    throw py::value_error("ticks: stages must be as many as the sizes say and at most " +
                          std::to_string(kMaxStages));
  }
  return {ticks, batch, neurons, memory, hidden, deep != 0, count, width, heads, tokens, pairs};
}

TickModel model_of(const Sizes& sizes, const std::vector<Stage>& stages, const Attention& a, Address nlm) {
  TickModel m{};
  m.n = sizes_of(sizes, stages.size());
  for (size_t i = 0; i < stages.size(); ++i) m.stages[i] = stage_of(stages[i]);
  m.query = {at<const float>(a[0]), at<const float>(a[1]), m.n.width, m.n.pairs};
  m.left = at<const int>(a[2]), m.right = at<const int>(a[3]), m.decay = at<const float>(a[4]);
  m.nlm = at<const float>(nlm);
  return m;
}

TickData data_of(int input, const Data& d) {
  return {at<const int>(d[0]),   input,           at<const float>(d[1]), at<const float>(d[2]),
          at<const float>(d[3]), at<float>(d[4]), at<float>(d[5]),       at<float>(d[6]),
          at<float>(d[7])};
}

py::dict plan(const Sizes& sizes, const std::vector<Stage>& stages, const Limits& limits) {
  const TickModel m = model_of(sizes, stages, {}, 0);
  const TickLaunch found = plan_ticks(m, {limits[0], limits[1], limits[2]});
  py::dict d;
  d["blocks"] = found.blocks, d["threads"] = found.threads, d["cluster"] = found.cluster;
  d["shared"] = found.shared, d["resident"] = found.resident, d["reason"] = found.reason;
  d["scratch"] = scratch_floats(m);
  return d;
}

}  // namespace

void bind_ticks(py::module_& m) {
  m.attr("MAX_BATCH") = kMaxBatch;
  m.attr("MAX_STAGES") = kMaxStages;
  m.def("tick_limits", [](int device) {
    const TickLimits found = tick_limits(device);
    return Limits{found.multiprocessors, found.shared, found.major};
  });
  m.def("plan_ticks", plan);
  m.def("run_ticks", [](const Sizes& sizes, const std::vector<Stage>& stages, const Attention& attention,
                        Address nlm, int input, const Data& data, int device, Address stream) {
    const TickModel model = model_of(sizes, stages, attention, nlm);
    py::gil_scoped_release release;
    run_ticks(model, data_of(input, data), device, at<void>(stream));
  });
}

}  // namespace ctm::cuda
