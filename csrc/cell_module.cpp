#include "engine_bindings.h"

namespace ctm {
namespace {

using CellSizeValues = std::array<int64_t, 21>;     // the members of CellSizes, in order
using CellNumberValues = std::array<float, 3>;      // the members of CellNumbers
using CellStateArrays = std::array<py::object, 6>;  // the members of CellState

// A cell with its kernels: those of the SIMD level in use when it was made.
class CellHandle {
 public:
  CellHandle(const CellSizeValues& sizes, const CellNumberValues& numbers, const py::dict& named)
      : kernels_(*kernels().cell), n_(made<CellSizes>(sizes)) {
    Arrays arrays(named, static_cast<int64_t>(WeightType::f32));
    std::vector<CellLayer> layers;
    for (int64_t l = 0; l < n_.layers; ++l) {
      const std::string name = "layer" + std::to_string(l) + ".";
      const int64_t inputs = (l ? n_.width : n_.fed_back) + (n_.states ? n_.width : 0);
      layers.push_back(
          {arrays.get(name + "recurrent", gates() * inputs), arrays.get(name + "bias", gates())});
    }
    cell_ = kernels_.make(n_, made<CellNumbers>(numbers), layers.data(), weights(arrays));
  }
  CellHandle(const CellHandle&) = delete;
  CellHandle& operator=(const CellHandle&) = delete;
  ~CellHandle() { kernels_.destroy(cell_); }

  // outputs: output, ticks, remainder; after: the state. Returns the number of ticks of all samples together,
  // or -1 where an input is not finite.
  int64_t run(int64_t batch, int64_t steps, const py::object& x, const std::array<py::object, 3>& outputs,
              const CellStateArrays& after) {
    const int64_t rows = batch * steps, adaptive = n_.most ? rows : 0;
    Buffers held;
    CellCall c = {};
    c.batch = batch, c.steps = steps;
    c.x = held.get<const float>("x", x, rows * n_.inputs);
    c.output = held.get<float>("output", outputs[0], rows * n_.outputs);
    c.ticks = held.get<int32_t>("ticks", outputs[1], adaptive);
    c.remainder = held.get<float>("remainder", outputs[2], adaptive);
    c.state = state<float>(held, batch, after);
    const Turn turn(busy_);
    py::gil_scoped_release release;
    const EngineRun found = kernels_.run(cell_, c);
    return found.finite ? found.computed : -1;
  }

  void reset(int64_t batch) {
    const Turn turn(busy_);
    kernels_.set_state(cell_, batch, {});
  }
  void set_state(int64_t batch, const CellStateArrays& from) {
    const Turn turn(busy_);
    Buffers held;
    kernels_.set_state(cell_, batch, state<const float>(held, batch, from));
  }
  void get_state(int64_t batch, const CellStateArrays& to) {
    const Turn turn(busy_);
    Buffers held;
    kernels_.get_state(cell_, batch, state<float>(held, batch, to));
  }

 private:
  int64_t gates() const { return n_.states == 2 ? 4 * n_.width : n_.width; }

  CellWeights weights(Arrays& a) const {
    const bool adaptive = n_.most > 0;
    const int64_t reads = n_.read * n_.slot_width, joined = n_.split ? 0 : n_.outputs * (n_.width + reads);
    const NtmSizes heads = {1, 1, n_.slots, n_.slot_width, n_.read, n_.write, n_.shift};
    const int64_t vector = n_.slots && !n_.split ? heads.interface() : 0;
    CellWeights w = {};
    w.from_input = a.get("from_input", gates() * n_.inputs);
    w.interface = a.get("interface", vector * n_.width), w.interface_bias = a.get("interface_bias", vector);
    w.temperature = a.get("temperature", n_.split ? 1 : 0);
    w.output = a.get("output", joined), w.output_bias = a.get("output_bias", n_.split ? 0 : n_.outputs);
    w.memory = a.get("memory", n_.slot_width * n_.slots), w.reads = a.get("reads", reads);
    w.read_weights = a.get("read_weights", n_.read * n_.slots);
    w.write_weights = a.get("write_weights", n_.write * n_.slots);
    w.flag = a.get("flag", adaptive ? gates() : 0), w.halting = a.get("halting", adaptive ? n_.width : 0);
    w.halting_bias = a.get("halting_bias", adaptive ? 1 : 0);
    return w;
  }

  template <class T>
  CellState<T> state(Buffers& held, int64_t batch, const CellStateArrays& from) const {
    const int64_t rows = batch * n_.layers * n_.width;
    CellState<T> s = {};
    s.hidden = held.get<T>("hidden", from[0], n_.states > 0 ? rows : 0);
    s.cell = held.get<T>("cell", from[1], n_.states > 1 ? rows : 0);
    s.memory = held.get<T>("memory", from[2], batch * n_.slot_width * n_.slots);
    s.reads = held.get<T>("reads", from[3], batch * n_.read * n_.slot_width);
    s.read_weights = held.get<T>("read_weights", from[4], batch * n_.read * n_.slots);
    s.write_weights = held.get<T>("write_weights", from[5], batch * n_.write * n_.slots);
    return s;
  }

  const CellKernels& kernels_;
  const CellSizes n_;
  void* cell_ = nullptr;
  std::atomic<bool> busy_{false};
};

}  // namespace

void bind_cell(py::module_& m) {
  py::class_<CellHandle>(m, "Cell")
      .def(py::init<const CellSizeValues&, const CellNumberValues&, const py::dict&>())
      .def("run", &CellHandle::run)
      .def("reset", &CellHandle::reset)
      .def("set_state", &CellHandle::set_state)
      .def("get_state", &CellHandle::get_state);
}

}  // namespace ctm
