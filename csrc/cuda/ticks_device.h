// The device half of the tick kernel: what one thread does from the first tick to the last.
#pragma once

#include "thread_block.h"
#include "ticks_layout.h"

namespace ctm::cuda {

// BATCH: samples that a row of weights is multiplied with at once, at least n.batch.
template <int BATCH>
class Ticks {
 public:
  __device__ explicit Ticks(const TickArguments& a)
      : m_(a.model),
        n_(a.model.n),
        d_(a.data),
        at_(a.at),
        shared_(shared_memory()),
        room_(shared_ + a.at.room),
        barrier_(reinterpret_cast<unsigned*>(a.data.scratch), a.cluster) {}

  __device__ void run() {
    prepare();
    for (int t = 0; t < n_.ticks; ++t) {
      const int input = d_.inputs ? d_.inputs[t] : d_.input;
      load_state(t);
      if (n_.pairs > 0) synchronise();
      if (input >= 0) {
        if (!at_.own_query) {
          query();
          barrier_.wait();
        }
        attend(t, input);
        barrier_.wait();
      }
      if (n_.width > 0) load_heads(input >= 0);
      for (int s = 0; s < n_.stages; ++s) {
        linear(s, s == 0 && input < 0 ? -1 - input : -1);
        barrier_.wait();
        activate(s);
      }
      neuron_level_models(t);
      barrier_.wait();
    }
  }

 private:
  __device__ Slice own(int units) const { return slice_of(units, blockIdx.x, gridDim.x); }
  __device__ float* operand(int b) const { return shared_ + at_.operand + b * at_.stride; }

  // Copies rows [begin, end) of a matrix of that many columns to shared memory.
  __device__ void keep(const float* weight, int begin, int end, int columns, float* to) const {
    const float* from = weight + int64_t{begin} * columns;
    for (int i = threadIdx.x; i < (end - begin) * columns; i += kTickThreads) to[i] = from[i];
  }

  __device__ void prepare() {
    const Slice neurons = own(n_.neurons);
    if (at_.nlm >= 0) keep(m_.nlm, neurons.begin, neurons.end, nlm_columns(n_), shared_ + at_.nlm);
    if (at_.query >= 0) {
      const Slice rows = own(n_.width);
      keep(m_.query.weight, rows.begin, rows.end, n_.pairs, shared_ + at_.query);
    }
    for (int s = 0; s < n_.stages; ++s) {
      if (at_.stages[s] >= 0) keep_stage(s);
    }
    for (int i = threadIdx.x; i < n_.batch * at_.action_stride; i += kTickThreads) {
      shared_[at_.alpha + i] = 0.0f;
      if (i < at_.action_stride) shared_[at_.beta + i] = 0.0f;
    }
    fill_ring(neurons);
    __syncthreads();
  }

  __device__ void keep_stage(int s) const {
    const TickStage& stage = m_.stages[s];
    const Slice units = own(stage.width);
    const int columns = stage.linear.columns;
    for (int half = 0; half < rows_per_unit(stage); ++half) {
      float* to = shared_ + at_.stages[s] + half * (units.end - units.begin) * columns;
      keep(stage.linear.weight, half * stage.width + units.begin, half * stage.width + units.end, columns,
           to);
    }
  }

  __device__ float* ring(int b, int neuron) const {  // neuron counts from the first of this block
    return shared_ + at_.ring + (neuron * n_.batch + b) * n_.memory;
  }

  __device__ void fill_ring(const Slice& neurons) const {
    const int count = neurons.end - neurons.begin;
    for (int i = threadIdx.x; i < n_.memory * n_.batch * count; i += kTickThreads) {
      const int j = i % count, b = i / count % n_.batch, m = i / count / n_.batch;
      ring(b, j)[m] = d_.history[(int64_t{m} * n_.batch + b) * n_.neurons + neurons.begin + j];
    }
  }

  // Post-activations behind the heads' outputs in the operand of the first linear map.
  __device__ void load_state(int t) const {
    const float* z = d_.z + int64_t{t} * n_.batch * n_.neurons;
    for (int b = 0; b < n_.batch; ++b) {
      for (int i = threadIdx.x; i < n_.neurons; i += kTickThreads) {
        operand(b)[n_.width + i] = __ldcg(z + b * n_.neurons + i);
      }
    }
    __syncthreads();
  }

  // Each block for itself: cheaper than another barrier.
  __device__ void synchronise() const {
    for (int p = threadIdx.x; p < n_.pairs; p += kTickThreads) {
      const float r = m_.decay[p], beta = r * shared_[at_.beta + p] + 1.0f, root = sqrtf(beta);
      const int left = n_.width + m_.left[p], right = n_.width + m_.right[p];
      shared_[at_.beta + p] = beta;
      for (int b = 0; b < n_.batch; ++b) {
        float& alpha = shared_[at_.alpha + b * at_.action_stride + p];
        alpha = r * alpha + operand(b)[left] * operand(b)[right];
        shared_[at_.action + b * at_.action_stride + p] = alpha / root;
      }
    }
    __syncthreads();
  }

  // Products of N rows of weights with the rows of x, in every lane.
  template <int N>
  __device__ void dot(const float* const (&w)[N], const float* x, int stride, int columns,
                      float (&sum)[N][BATCH]) const {
    constexpr int kAhead = BATCH > 4 ? 2 : 4;  // loads under way, as many as the registers hold
    const int vectors = columns % 4 == 0 ? columns / 4 : 0;
#pragma unroll
    for (int r = 0; r < N; ++r) {
#pragma unroll
      for (int b = 0; b < BATCH; ++b) sum[r][b] = 0.0f;
    }
#pragma unroll kAhead
    for (int i = lane(); i < vectors; i += kWarp) {
      float4 a[N];
#pragma unroll
      for (int r = 0; r < N; ++r) a[r] = reinterpret_cast<const float4*>(w[r])[i];
#pragma unroll
      for (int b = 0; b < BATCH; ++b) {
        const float4 v = reinterpret_cast<const float4*>(x + b * stride)[i];
#pragma unroll
        for (int r = 0; r < N; ++r) {
          sum[r][b] += a[r].x * v.x + a[r].y * v.y + a[r].z * v.z + a[r].w * v.w;
        }
      }
    }
    for (int i = 4 * vectors + lane(); i < columns; i += kWarp) {
#pragma unroll
      for (int r = 0; r < N; ++r) {
#pragma unroll
        for (int b = 0; b < BATCH; ++b) sum[r][b] += w[r][i] * x[b * stride + i];
      }
    }
#pragma unroll
    for (int r = 0; r < N; ++r) {
#pragma unroll
      for (int b = 0; b < BATCH; ++b) sum[r][b] = warp_sum(sum[r][b]);
    }
  }

  // A number that lane b holds for sample b; lanes without a sample hold that of the first.
  __device__ int sample() const { return lane() < n_.batch ? lane() : 0; }

  // The sum of this lane's sample.
  __device__ float own_sum(const float (&sum)[BATCH]) const {
    float own = sum[0];
#pragma unroll
    for (int b = 1; b < BATCH; ++b) own = lane() == b ? sum[b] : own;
    return own;
  }

  __device__ void query() const {
    const Slice rows = own(n_.width);
    const float* kept = at_.query >= 0 ? shared_ + at_.query : nullptr;
    float* to = d_.scratch + scratch_query();
    float sum[1][BATCH];
    for (int row = rows.begin + warp(); row < rows.end; row += kTickWarps) {
      const float* const w[1] = {kept ? kept + (row - rows.begin) * n_.pairs
                                      : m_.query.weight + int64_t{row} * n_.pairs};
      const float bias = m_.query.bias[row];
      dot(w, shared_ + at_.action, at_.action_stride, n_.pairs, sum);
      if (lane() < n_.batch) to[lane() * n_.width + row] = own_sum(sum[0]) + bias;
    }
  }

  // The query of one sample and head into q.
  __device__ void head_query(int b, int head, int width, float* q) const {
    if (!at_.own_query) {
      const float* from = d_.scratch + scratch_query() + b * n_.width + head * width;
      for (int j = threadIdx.x; j < width; j += kTickThreads) q[j] = __ldcg(from + j);
      return;
    }
    const float* action = shared_ + at_.action + b * at_.action_stride;
    for (int j = warp(); j < width; j += kTickWarps) {
      const int row = head * width + j;
      const float* w = m_.query.weight + int64_t{row} * n_.pairs;
      float sum = 0.0f;
      for (int p = lane(); p < n_.pairs; p += kWarp) sum += w[p] * action[p];
      sum = warp_sum(sum) + m_.query.bias[row];
      if (lane() == 0) q[j] = sum;
    }
  }

  __device__ void attend(int t, int set) const {
    const int width = n_.width / n_.heads;
    for (int i = blockIdx.x; i < n_.batch * n_.heads; i += gridDim.x) {
      const int b = i / n_.heads, head = i % n_.heads;
      const int64_t from = (int64_t{set} * n_.batch + b) * n_.tokens * n_.width + head * width;
      float *q = shared_ + at_.spare, *scores = shared_ + at_.scores;
      head_query(b, head, width, q);
      __syncthreads();
      score(q, d_.keys + from, width, scores);
      const float total = softmax_parts(scores);
      if (d_.weights) store_weights(t, i, scores, total);
      mix(d_.values + from, width, scores, total,
          d_.scratch + scratch_heads(n_) + b * n_.width + head * width);
    }
  }

  // A warp takes four tokens at once: their loads overlap.
  __device__ void score(const float* q, const float* keys, int width, float* scores) const {
    constexpr int kTokens = 4;
    for (int first = warp() * kTokens; first < n_.tokens; first += kTickWarps * kTokens) {
      float sum[kTokens] = {};
      for (int j = lane(); j < width; j += kWarp) {
#pragma unroll
        for (int k = 0; k < kTokens; ++k) {
          const int l = min(first + k, n_.tokens - 1);
          sum[k] += q[j] * keys[int64_t{l} * n_.width + j];
        }
      }
#pragma unroll
      for (int k = 0; k < kTokens; ++k) {
        sum[k] = warp_sum(sum[k]);
        if (lane() == 0 && first + k < n_.tokens) scores[first + k] = sum[k];
      }
    }
    __syncthreads();
  }

  // Scores to exp(score - largest); returns their sum.
  __device__ float softmax_parts(float* scores) const {
    float most = -INFINITY, sum = 0.0f;
    for (int l = threadIdx.x; l < n_.tokens; l += kTickThreads) most = fmaxf(most, scores[l]);
    most = block_max<kTickThreads>(most, room_);
    for (int l = threadIdx.x; l < n_.tokens; l += kTickThreads) {
      scores[l] = expf(scores[l] - most);
      sum += scores[l];
    }
    return block_sum<kTickThreads>(sum, room_);
  }

  __device__ void store_weights(int t, int item, const float* scores, float total) const {
    float* to = d_.weights + (int64_t{t} * n_.batch * n_.heads + item) * n_.tokens;
    for (int l = threadIdx.x; l < n_.tokens; l += kTickThreads) to[l] = scores[l] / total;
  }

  // A group of threads a column, one thread for every part of the tokens.
  __device__ void mix(const float* values, int width, const float* scores, float total, float* to) const {
    const int parts = width < kTickThreads ? kTickThreads / width : 1;
    const int part = threadIdx.x / width;
    float* partial = shared_ + at_.spare;
    for (int first = 0; first < width; first += kTickThreads) {
      const int j = first + (parts > 1 ? threadIdx.x % width : threadIdx.x);
      const bool used = j < width && part < parts;
      float sum = 0.0f;
      for (int l = part; used && l < n_.tokens; l += parts)
        sum += scores[l] * values[int64_t{l} * n_.width + j];
      __syncthreads();
      if (used) partial[parts > 1 ? threadIdx.x : j - first] = sum;
      __syncthreads();
      if (used && part == 0) {
        for (int other = 1; other < parts; ++other) sum += partial[other * width + j];
        to[j] = sum / total;
      }
    }
    __syncthreads();
  }

  __device__ void load_heads(bool attended) const {
    const float* heads = d_.scratch + scratch_heads(n_);
    for (int b = 0; b < n_.batch; ++b) {
      for (int j = threadIdx.x; j < n_.width; j += kTickThreads) {
        operand(b)[j] = attended ? __ldcg(heads + b * n_.width + j) : 0.0f;
      }
    }
    __syncthreads();
  }

  // The linear map of stage s, and its GLU; given: index of the bias rows that stand for the input, or -1.
  __device__ void linear(int s, int given) const {
    if (m_.stages[s].kind == StageKind::glu) return linear_rows<2>(s, given);
    linear_rows<1>(s, given);
  }

  // N rows of weights a unit: a value, or a value and its gate.
  template <int N>
  __device__ void linear_rows(int s, int given) const {
    const TickStage& stage = m_.stages[s];
    const Slice units = own(stage.width);
    const int columns = stage.linear.columns;
    const bool here = at_.stages[s] >= 0;
    const int64_t apart = int64_t{here ? units.end - units.begin : stage.width} * columns;
    const float* bias =
        given < 0 ? stage.linear.bias : d_.given + (int64_t{given} * n_.batch + sample()) * stage.linear.rows;
    float* to = d_.scratch + scratch_stage(m_, s);
    float sum[N][BATCH];
    for (int unit = units.begin + warp(); unit < units.end; unit += kTickWarps) {
      const float *first = here ? shared_ + at_.stages[s] + (unit - units.begin) * columns
                                : stage.linear.weight + int64_t{unit} * columns,
                  *w[N];
      float own_bias[N];
#pragma unroll
      for (int r = 0; r < N; ++r) w[r] = first + r * apart, own_bias[r] = bias[r * stage.width + unit];
      dot(w, operand(0), at_.stride, columns, sum);
      float value = own_sum(sum[0]) + own_bias[0];
      if (N == 2) value *= sigmoid(own_sum(sum[N - 1]) + own_bias[N - 1]);
      if (lane() < n_.batch) to[lane() * stage.width + unit] = value;
    }
  }

  // The output of stage s, whole in every block, as the operand of the next.
  __device__ void activate(int s) const {
    const TickStage& stage = m_.stages[s];
    for (int b = 0; b < n_.batch; ++b) {
      normalised(s, b, operand(b));
      if (stage.kind != StageKind::skip) continue;
      float* skipped = shared_ + at_.spare;
      normalised(stage.skip, b, skipped);
      for (int i = threadIdx.x; i < stage.width; i += kTickThreads) operand(b)[i] += skipped[i];
      normalise(operand(b), stage.width, stage.outer);
    }
    __syncthreads();
  }

  // Every thread reads and writes the same places throughout, so that only the sums need barriers.
  __device__ void normalised(int s, int b, float* row) const {
    const TickStage& stage = m_.stages[s];
    const float* from = d_.scratch + scratch_stage(m_, s) + b * stage.width;
    for (int i = threadIdx.x; i < stage.width; i += kTickThreads) row[i] = __ldcg(from + i);
    normalise(row, stage.width, stage.norm);
    if (stage.kind == StageKind::glu) return;
    for (int i = threadIdx.x; i < stage.width; i += kTickThreads) row[i] *= sigmoid(row[i]);
  }

  __device__ void normalise(float* row, int width, const LayerNorm& norm) const {
    float sum = 0.0f, squares = 0.0f;
    for (int i = threadIdx.x; i < width; i += kTickThreads) sum += row[i];
    const float mean = block_sum<kTickThreads>(sum, room_) / width;
    for (int i = threadIdx.x; i < width; i += kTickThreads) squares += (row[i] - mean) * (row[i] - mean);
    const float scale = 1.0f / sqrtf(block_sum<kTickThreads>(squares, room_) / width + norm.eps);
    for (int i = threadIdx.x; i < width; i += kTickThreads) {
      row[i] = (row[i] - mean) * scale * norm.weight[i] + norm.bias[i];
    }
  }

  // The operand holds the pre-activations.
  __device__ void neuron_level_models(int t) const {
    const Slice neurons = own(n_.neurons);
    const int count = neurons.end - neurons.begin, newest = t % n_.memory;
    for (int i = threadIdx.x; i < n_.batch * count; i += kTickThreads) {
      const int j = i % count, b = i / count;
      const float s = operand(b)[neurons.begin + j];
      ring(b, j)[newest] = s;
      d_.history[(int64_t{n_.memory + t} * n_.batch + b) * n_.neurons + neurons.begin + j] = s;
    }
    __syncthreads();
    for (int i = warp(); i < n_.batch * count; i += kTickWarps) {
      const int j = i / n_.batch, b = i % n_.batch, columns = nlm_columns(n_);
      const float* w =
          at_.nlm >= 0 ? shared_ + at_.nlm + j * columns : m_.nlm + int64_t{neurons.begin + j} * columns;
      const float z = post_activation(w, ring(b, j), newest);
      if (lane() == 0) d_.z[(int64_t{t + 1} * n_.batch + b) * n_.neurons + neurons.begin + j] = z;
    }
  }

  // Of one neuron and sample, by one warp; `newest` is the place of the newest pre-activation in the ring.
  __device__ float post_activation(const float* w, const float* ring, int newest) const {
    const int outputs = 2 * n_.hidden;
    float* u = shared_ + at_.hidden + warp() * outputs;
    __syncwarp();  // others may still read the neuron before
    for (int o = lane(); o < outputs; o += kWarp) {
      float sum = w[n_.memory * outputs + o];
      for (int m = 0, place = newest; m < n_.memory; ++m) {
        place = place + 1 == n_.memory ? 0 : place + 1;  // the oldest first
        sum += w[m * outputs + o] * ring[place];
      }
      u[o] = sum;
    }
    __syncwarp();
    if (!n_.deep) return u[0] * sigmoid(u[1]);
    const float* second = w + (n_.memory + 1) * outputs;
    float sum = 0.0f, gate = 0.0f;
    for (int h = lane(); h < n_.hidden; h += kWarp) {
      const float hidden = u[h] * sigmoid(u[n_.hidden + h]);
      sum += hidden * second[2 * h];
      gate += hidden * second[2 * h + 1];
    }
    sum = warp_sum(sum) + second[2 * n_.hidden];
    return sum * sigmoid(warp_sum(gate) + second[2 * n_.hidden + 1]);
  }

  const TickModel& m_;
  const TickSizes& n_;
  const TickData& d_;
  const TickLayout& at_;
  float *shared_, *room_;
  LaunchBarrier barrier_;
};

}  // namespace ctm::cuda
