#include "engine.h"

#include <atomic>

#include "denormals.h"
#include "engine_front.h"
#include "engine_memory.h"
#include "engine_output.h"
#include "parallel.h"

namespace ctm::CTM_LEVEL {
namespace {

// Samples [first, first + rows) of a call, on one thread.
struct Ticks {
  Samples& s;
  const Fronts& fronts;
  const FrontMemory& memory;
  const EngineCall& call;
  int64_t first, rows, computed = 0;

  const EngineSizes& n() const { return s.net.n; }

  // Numbers of a sample in one plane of the call's inputs.
  int64_t token_elements() const { return elements(fronts.tokens, call.tokens * n().width); }
  int64_t given_elements() const { return elements(fronts.given, n().features); }
  int64_t elements(const Front& f, int64_t behind) const { return is_raw(f) ? f.inputs() : behind; }
  bool is_raw(const Front& f) const { return call.raw && !f.empty(); }

  bool check() const {
    const FlushDenormals flush;
    return is_finite(fronts.tokens, call.sets, call.token_data, token_elements()) &&
           is_finite(fronts.given, call.given, call.given_data, given_elements());
  }

  bool is_finite(const Front& f, int64_t planes, const float* data, int64_t size) const {
    if (is_raw(f) && f.embeds()) return true;
    for (int64_t i = 0; i < planes; ++i)
      if (!finite(rows * size, data + (i * call.batch + first) * size)) return false;
    return true;
  }

  // Calls body(first row, rows, what the recurrent part reads of them) over all rows of one plane.
  template <class Body>
  void behind(const Front& f, const float* data, int64_t size, const Body& body) const {
    if (!is_raw(f)) return body(0, rows, data);
    for (int64_t b = 0; b < rows; b += memory.samples) {
      const int64_t count = std::min(memory.samples, rows - b);
      Program program(f, memory, count);
      body(b, count, program.run(data + b * size));
    }
  }

  void begin() {
    for (int64_t b = 0; b < rows; ++b) s.id[b] = static_cast<int32_t>(b);
    clear(s.streak, rows * kRules);
    const int64_t given = given_elements(), tokens = token_elements(), L = call.tokens * n().width;
    for (int64_t g = 0; g < call.given; ++g)
      behind(fronts.given, call.given_data + (g * call.batch + first) * given, given,
             [&](int64_t b, int64_t count, const float* x) {
               const int64_t outputs = s.net.from_given.outputs;
               apply(s.net.from_given, count, x, n().features, s.constant + (g * s.capacity + b) * outputs);
             });
    for (int64_t k = 0; k < call.sets; ++k)
      behind(fronts.tokens, call.token_data + (k * call.batch + first) * tokens, tokens,
             [&](int64_t b, int64_t count, const float* x) {
               for (int64_t i = 0; i < count; ++i) project(k, b + i, x + i * L);
             });
    if (n().stateful) return;
    s.oldest = 0;
    for (int64_t b = 0; b < rows; ++b) start(b);
  }

  void start(int64_t b) {
    const Pairs& p = s.net.out;
    copy(n().memory * n().neurons, s.net.start, s.history + b * s.window());
    copy(n().neurons, s.net.z0, s.z(b));
    clear(s.alpha + b * n().action, n().action);
    for (int64_t i = 0; i < p.count; ++i) s.sum[b * p.count + i] = s.net.z0[p.left[i]] * s.net.z0[p.right[i]];
  }

  // Keys and values (2 d, L) of one sample's tokens, which are packed as weights are.
  void project(int64_t set, int64_t b, const float* tokens) {
    constexpr int64_t P = kPanel<float>;
    const int64_t d = n().width, L = call.tokens;
    float* out = s.keys + (set * s.capacity + b) * 2 * d * n().tokens;
    for (int64_t panel = 0; panel < panel_count<float>(L); ++panel) {
      const int64_t at = panel * P, left = L - at;
      pack_panel<float>(panel, L, d, tokens, d, 1, s.panels);
      rows_of_panels<float, CTM_ROWS, 1>(0, {2 * d, left < P ? left : P, d},
                                         Rows<float>{s.net.keys_values, d, nullptr, 0, out + at, L},
                                         Panels<float>{s.panels + at * d, P * d, nullptr});
    }
  }

  void run() {
    const FlushDenormals flush;
    begin();
    int64_t waiting = 0;  // ticks whose synchronisation is not read out yet
    for (int64_t t = 0; t < call.ticks && rows; ++t) {
      Tick{s, call, rows}.run(t, s.oldest);
      s.oldest = s.oldest + 1 == n().memory ? 0 : s.oldest + 1;
      computed += rows;
      if (n().stateful) continue;
      synchronise_output(t, waiting++ * rows);
      const bool last = t + 1 == call.ticks;
      if (!call.halt.on && !last && (waiting + 1) * rows <= s.pending) continue;
      const ReadOut out{s, call, first, rows};
      out.run(t + 1 - waiting, waiting);
      if (call.halt.on || last) stop(t, out, s.synchronisation + (waiting - 1) * rows * n().pairs);
      waiting = 0;
    }
    for (int64_t b = 0; n().stateful && b < rows; ++b) read_window(b);
  }

  void synchronise_output(int64_t t, int64_t to) {
    const int64_t S = n().pairs;
    for (int64_t b = 0; b < rows; ++b)
      synchronise(s.net.out, s.net.out.root + t * S, s.z(b), s.sum + b * S, s.synchronisation + (to + b) * S);
  }

  // Finishes the rows that tick t was the last of; the others close ranks.
  void stop(int64_t t, const ReadOut& out, const float* synchronisation) {
    const int64_t S = n().pairs;
    const bool last = t + 1 == call.ticks;
    for (int64_t b = 0; b < rows; ++b) {
      const EngineReason reason = call.halt.on ? decide(s, call.halt, t, b) : EngineReason::last_tick;
      s.ended[b] = last || reason != EngineReason::last_tick;
      if (!s.ended[b]) continue;
      const int64_t sample = first + s.id[b];
      copy(S, synchronisation + b * S, call.synchronisation + sample * S);
      call.used[sample] = static_cast<int32_t>(t + 1);
      call.reason[sample] = static_cast<int32_t>(reason);
      out.repeat(sample);
    }
    for (int64_t b = rows; b-- > 0;)
      if (s.ended[b] && --rows != b) move_row(s, rows, b);
  }

  // The synchronisation over the remembered post-activations, of a stateful engine.
  void read_window(int64_t b) {
    const Pairs& p = s.net.out;
    const int64_t M = n().memory;
    float* alpha = s.sum + b * p.count;
    clear(alpha, p.count);
    const float* z = s.post + b * s.window() + s.oldest * n().neurons;
    for (int64_t m = 0; m + 1 < M; ++m, z += n().neurons)
      advance(p.count, z, p.left, p.right, p.factor, alpha);
    synchronise(p, p.root + (M - 1) * p.count, z, alpha, call.synchronisation + (first + b) * p.count);
  }
};

int64_t weights_size(const EngineSizes& n, const EngineStage* stages, int64_t count, const EngineWeights& w,
                     const EngineFronts& f) {
  Packer counting(nullptr, static_cast<WeightType>(n.weights));
  Net(n, stages, count, w, counting);
  Fronts(f, counting);
  return counting.used();
}

// Weights in one block, and the memory of every thread's samples in another.
class Engine {
 public:
  Engine(const EngineSizes& n, const EngineStage* stages, int64_t count, const EngineWeights& w,
         const EngineFronts& f)
      : weights_(weights_size(n, stages, count, w, f)),
        packer_(weights_.memory.data, static_cast<WeightType>(n.weights)),
        net_(n, stages, count, w, packer_),
        fronts_(f, packer_),
        work_(n.threads * samples_size()) {
    for (int64_t i = 0; i < n.threads; ++i) {
      Arena<float> arena{work_.memory.data + i * samples_size()};
      samples_.emplace_back(net_, capacity(), arena);
      memories_.emplace_back(fronts_, capacity(), arena);
    }
  }

  // Denormals are flushed within each share of the work alone: a thread that OpenMP starts keeps the control
  // word of the one that starts it, and lives on in other libraries' loops.
  EngineRun run(const EngineCall& call) {
    const int64_t groups = groups_of(call.batch);
    std::atomic<bool> all_finite{true};
    std::atomic<int64_t> computed{0};
    parallel_for(static_cast<int>(groups), groups, [&](int64_t g) {
      if (!ticks(call, g).check()) all_finite = false;
    });
    if (!all_finite) return {false, 0};
    parallel_for(static_cast<int>(groups), groups, [&](int64_t g) {
      Ticks group = ticks(call, g);
      group.run();
      computed += group.computed;
    });
    if (call.pre) get_state(call.batch, call.pre, call.post);
    return {true, computed};
  }

  void set_state(int64_t batch, const float* pre, const float* post) {
    const int64_t size = net_.n.memory * net_.n.neurons;
    for_each_row(batch, [&](Samples& s, int64_t row, int64_t sample) {
      s.oldest = 0;
      copy(size, pre ? pre + sample * size : net_.start, s.history + row * s.window());
      copy(size, post ? post + sample * size : net_.start_post, s.post + row * s.window());
      copy(net_.n.neurons, s.post + row * s.window() + size - net_.n.neurons, s.z(row));
    });
  }

  void get_state(int64_t batch, float* pre, float* post) {
    const int64_t size = net_.n.memory * net_.n.neurons;
    for_each_row(batch, [&](const Samples& s, int64_t row, int64_t sample) {
      const int64_t from = row * s.window() + s.oldest * net_.n.neurons;
      copy(size, s.history + from, pre + sample * size);
      copy(size, s.post + from, post + sample * size);
    });
  }

 private:
  int64_t capacity() const { return (net_.n.batch + net_.n.threads - 1) / net_.n.threads; }
  int64_t samples_size() const {
    Arena<float> counting;
    const Samples samples(net_, capacity(), counting);
    const FrontMemory memory(fronts_, capacity(), counting);
    return counting.used;
  }
  int64_t groups_of(int64_t batch) const { return batch < net_.n.threads ? batch : net_.n.threads; }
  static int64_t first_of(int64_t group, int64_t groups, int64_t batch) { return group * batch / groups; }

  Ticks ticks(const EngineCall& call, int64_t group) {
    const int64_t groups = groups_of(call.batch), first = first_of(group, groups, call.batch);
    const size_t i = static_cast<size_t>(group);
    return {samples_[i], fronts_, memories_[i], call, first, first_of(group + 1, groups, call.batch) - first};
  }

  template <class Body>
  void for_each_row(int64_t batch, const Body& body) {
    const int64_t groups = groups_of(batch);
    for (int64_t g = 0; g < groups; ++g)
      for (int64_t at = first_of(g, groups, batch), i = at; i < first_of(g + 1, groups, batch); ++i)
        body(samples_[static_cast<size_t>(g)], i - at, i);
  }

  const Pages weights_;
  Packer packer_;
  const Net net_;
  const Fronts fronts_;
  const Pages work_;
  std::vector<Samples> samples_;
  std::vector<FrontMemory> memories_;
};

void* make(const EngineSizes& n, const EngineStage* stages, int64_t count, const EngineWeights& w,
           const EngineFronts& f) {
  return new Engine(n, stages, count, w, f);
}

void destroy(void* engine) { delete static_cast<Engine*>(engine); }

EngineRun run(void* engine, const EngineCall& call) { return static_cast<Engine*>(engine)->run(call); }

void set_state(void* engine, int64_t batch, const float* pre, const float* post) {
  static_cast<Engine*>(engine)->set_state(batch, pre, post);
}

void get_state(void* engine, int64_t batch, float* pre, float* post) {
  static_cast<Engine*>(engine)->get_state(batch, pre, post);
}

}  // namespace

extern const EngineKernels engine_kernels = {make, destroy, run, set_state, get_state};

}  // namespace ctm::CTM_LEVEL
