#include "engine_bindings.h"

namespace ctm {
namespace {

using Sizes = std::array<int64_t, 21>;  // the members of EngineSizes, in order
using Stage = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, double, double>;  // up to the weights
using FrontStage = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, double>;     // likewise
using FrontStages = std::vector<FrontStage>;
using Counts = std::array<int64_t, 6>;  // batch, ticks, tokens, sets, given, raw
using Halt = std::tuple<float, float, float, int64_t, int64_t, bool>;  // the members of EngineHalt

EngineStage stage_of(const Stage& values, const std::string& name, Arrays& a) {
  EngineStage s = {};
  s.kind = static_cast<StageKind>(std::get<0>(values));
  s.width = std::get<1>(values), s.inputs = std::get<2>(values);
  s.source = std::get<3>(values), s.skip = std::get<4>(values);
  s.eps = static_cast<float>(std::get<5>(values)), s.outer_eps = static_cast<float>(std::get<6>(values));
  const int64_t outputs = s.kind == StageKind::glu ? 2 * s.width : s.width;
  const int64_t outer = s.kind == StageKind::skip ? s.width : 0;
  s.weight = a.matrix(name + "weight", outputs, s.inputs), s.bias = a.get(name + "bias", outputs);
  s.norm = a.get(name + "norm", s.width), s.norm_bias = a.get(name + "norm_bias", s.width);
  s.outer = a.get(name + "outer", outer), s.outer_bias = a.get(name + "outer_bias", outer);
  return s;
}

EngineWeights weights_of(const EngineSizes& n, const std::vector<EngineStage>& stages, Arrays& a) {
  const EngineStage& first = stages[0];
  const int64_t outputs = n.features ? (first.kind == StageKind::glu ? 2 : 1) * first.width : 0;
  const int64_t H = n.hidden, M = n.memory, D = n.neurons, second = n.deep ? 2 * D : 0;
  EngineWeights w = {};
  w.start = a.get("start", M * D);
  w.start_post = a.get("start_post", n.stateful ? M * D : 0);
  w.z0 = a.get("z0", n.stateful ? 0 : D);
  w.query = a.matrix("query", n.width, n.action), w.query_bias = a.get("query_bias", n.width);
  w.keys_values = a.get("keys_values", 2 * n.width * n.width);
  w.from_given = a.matrix("from_given", outputs, n.features), w.given_bias = a.get("given_bias", outputs);
  w.w1 = a.matrix("w1", 2 * H * D, M), w.b1 = a.get("b1", 2 * H * D);
  w.w2 = a.matrix("w2", second, H), w.b2 = a.get("b2", second);
  w.eps = a.get("eps", n.normed ? 1 + (n.deep != 0) : 0);
  w.action_factor = a.get("action_factor", n.action), w.factor = a.get("factor", n.pairs);
  w.project = a.matrix("project", n.classes, n.pairs), w.project_bias = a.get("project_bias", n.classes);
  w.energy = a.matrix("energy", n.energy, n.pairs), w.energy_bias = a.get("energy_bias", n.energy);
  w.head = a.get("head", n.energy), w.head_bias = a.get("head_bias", n.energy ? 1 : 0);
  w.action_left = a.get<int32_t>("action_left", n.action);
  w.action_right = a.get<int32_t>("action_right", n.action);
  w.left = a.get<int32_t>("left", n.pairs), w.right = a.get<int32_t>("right", n.pairs);
  return w;
}

EngineFrontStage front_stage_of(const FrontStage& values, const std::string& name, Arrays& a) {
  EngineFrontStage s = {};
  s.kind = static_cast<FrontKind>(std::get<0>(values));
  s.rows = std::get<1>(values), s.inputs = std::get<2>(values);
  s.width = std::get<3>(values), s.count = std::get<4>(values);
  s.eps = static_cast<float>(std::get<5>(values));
  const bool linear = s.kind == FrontKind::linear, norm = s.kind == FrontKind::norm;
  const int64_t rows = linear                       ? s.inputs
                       : s.kind == FrontKind::embed ? s.count
                       : s.kind == FrontKind::add   ? s.rows
                                                    : norm;
  s.weight = a.get(name + "weight", rows * s.width),
  s.bias = a.get(name + "bias", (linear || norm) * s.width);
  return s;
}

std::vector<EngineFrontStage> front_of(const FrontStages& stages, const std::string& name, Arrays& a) {
  std::vector<EngineFrontStage> found;
  for (const FrontStage& s : stages)
    found.push_back(front_stage_of(s, name + std::to_string(found.size()) + ".", a));
  return found;
}

// An engine with its kernels: those of the SIMD level in use when it was made.
class EngineHandle {
 public:
  EngineHandle(const Sizes& sizes, const std::vector<Stage>& stages, const std::array<FrontStages, 2>& fronts,
               const py::dict& named)
      : kernels_(*kernels().engine), n_(made<EngineSizes>(sizes)) {
    Arrays arrays(named, n_.weights);
    std::vector<EngineStage> found;
    for (const Stage& s : stages)
      found.push_back(stage_of(s, "stage" + std::to_string(found.size()) + ".", arrays));
    const EngineWeights weights = weights_of(n_, found, arrays);
    const auto tokens = front_of(fronts[0], "tokens_front", arrays);
    const auto given = front_of(fronts[1], "given_front", arrays);
    raw_ = {raw_size(tokens), raw_size(given)};
    engine_ = kernels_.make(n_, found.data(), static_cast<int64_t>(found.size()), weights,
                            {{tokens.data(), static_cast<int64_t>(tokens.size())},
                             {given.data(), static_cast<int64_t>(given.size())}});
    if (n_.stateful) kernels_.set_state(engine_, n_.batch, nullptr, nullptr);
  }
  EngineHandle(const EngineHandle&) = delete;
  EngineHandle& operator=(const EngineHandle&) = delete;
  ~EngineHandle() { kernels_.destroy(engine_); }

  // inputs: tokens, given, schedule; outputs: predictions, certainties, energies, synchronisation, used,
  // reason. Returns the number of ticks of all samples that were computed, or -1 where an input is not
  // finite.
  int64_t run(const Counts& counts, const std::array<py::object, 3>& inputs, const Halt& halt,
              const std::array<py::object, 8>& outputs) {
    const auto [B, T, L, K, G, raw] = counts;
    Buffers held;
    EngineCall c = {};
    c.batch = B, c.ticks = T, c.tokens = L, c.sets = K, c.given = G, c.raw = raw;
    c.halt = made<EngineHalt>(halt);
    c.token_data =
        held.get<const float>("tokens", inputs[0], K * B * (raw && raw_[0] ? raw_[0] : L * n_.width));
    c.given_data =
        held.get<const float>("given", inputs[1], G * B * (raw && raw_[1] ? raw_[1] : n_.features));
    c.schedule = held.get<const int32_t>("schedule", inputs[2], T);
    const int64_t rows = n_.stateful ? 0 : T * B, once = n_.stateful ? 0 : B;
    c.predictions = held.get<float>("predictions", outputs[0], rows * n_.classes);
    c.certainties = held.get<float>("certainties", outputs[1], rows * 2);
    c.energies = held.get<float>("energies", outputs[2], n_.energy ? rows : 0);
    c.synchronisation = held.get<float>("synchronisation", outputs[3], B * n_.pairs);
    c.used = held.get<int32_t>("ticks", outputs[4], once);
    c.reason = held.get<int32_t>("reason", outputs[5], once);
    const int64_t history = outputs[6].is_none() ? 0 : B * n_.memory * n_.neurons;
    c.pre = held.get<float>("state[0]", outputs[6], history);
    c.post = held.get<float>("state[1]", outputs[7], history);
    const Turn turn(busy_);
    py::gil_scoped_release release;
    const EngineRun found = kernels_.run(engine_, c);
    return found.finite ? found.computed : -1;
  }

  void set_state(int64_t batch, const py::object& pre, const py::object& post) {
    const Turn turn(busy_);
    const int64_t count = pre.is_none() ? 0 : batch * n_.memory * n_.neurons;
    Buffers held;
    const float* before = held.get<const float>("state[0]", pre, count);
    kernels_.set_state(engine_, batch, before, held.get<const float>("state[1]", post, count));
  }
  void get_state(int64_t batch, const py::object& pre, const py::object& post) {
    const Turn turn(busy_);
    const int64_t count = batch * n_.memory * n_.neurons;
    Buffers held;
    float* before = held.get<float>("state[0]", pre, count);
    kernels_.get_state(engine_, batch, before, held.get<float>("state[1]", post, count));
  }

 private:
  static int64_t raw_size(const std::vector<EngineFrontStage>& stages) {
    return stages.empty() ? 0 : stages[0].rows * stages[0].inputs;
  }

  const EngineKernels& kernels_;
  const EngineSizes n_;
  std::array<int64_t, 2> raw_ = {};  // elements of a sample before the fronts of tokens and given inputs
  void* engine_ = nullptr;
  std::atomic<bool> busy_{false};
};

}  // namespace

void bind_engine(py::module_& m) {
  py::class_<EngineHandle>(m, "Engine")
      .def(py::init<const Sizes&, const std::vector<Stage>&, const std::array<FrontStages, 2>&,
                    const py::dict&>())
      .def("run", &EngineHandle::run)
      .def("set_state", &EngineHandle::set_state)
      .def("get_state", &EngineHandle::get_state);
}

}  // namespace ctm
