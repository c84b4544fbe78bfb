// The raw interface vector of one step of one sample, activated, and the gradients of the raw values.
#pragma once

#include "dnc.h"
#include "dnc_slots.h"

namespace ctm::CTM_LEVEL {

template <class T>
void sigmoids(int64_t n, const T* x, T* out) {
  for (int64_t at = 0; at < n; at += V<T>) {
    const int count = part<T>(n, at);
    store_part(out + at, sigmoid(load_part(x + at, count)), count);
  }
}

// Offsets of the parts in an interface vector, in the paper's order.
struct DncParts {
  int64_t read_keys = 0, read_strengths, write_key, write_strength, erase, write_vector, gates, modes;

  explicit DncParts(const DncSizes& n)
      : read_strengths(n.heads * n.width),
        write_key(read_strengths + n.heads),
        write_strength(write_key + n.width),
        erase(write_strength + 1),
        write_vector(erase + n.width),
        gates(write_vector + n.width),  // free gates R, allocation gate, write gate
        modes(gates + n.heads + 2) {}
};

// Activated values, or their gradients, in the places of the raw ones.
template <class T>
class Interface {
 public:
  Interface(const DncSizes& n, bool oneplus, Arena<T>& arena)
      : n_(n), at_(n), oneplus_(oneplus), values_(arena.take(n.interface())) {}

  void read(const T* raw) const {
    copy(n_.interface(), raw, values_);
    sigmoids(n_.width, raw + at_.erase, values_ + at_.erase);
    sigmoids(n_.heads + 2, raw + at_.gates, values_ + at_.gates);
    for (int64_t h = 0; h < n_.heads; ++h) {
      values_[at_.read_strengths + h] = strength(raw[at_.read_strengths + h]);
      distribution(raw + at_.modes + 3 * h, values_ + at_.modes + 3 * h);
    }
    values_[at_.write_strength] = strength(raw[at_.write_strength]);
  }

  // Turns the gradients of activated values, in place, into those of the raw values.
  void backward(const T* raw, T* gradient) const {
    for (int64_t w = at_.erase; w < at_.write_vector; ++w) gradient[w] *= values_[w] * (T(1) - values_[w]);
    for (int64_t g = at_.gates; g < at_.modes; ++g) gradient[g] *= values_[g] * (T(1) - values_[g]);
    sigmoid_times(n_.heads, raw + at_.read_strengths, gradient + at_.read_strengths);
    sigmoid_times(1, raw + at_.write_strength, gradient + at_.write_strength);
    for (int64_t h = 0; h < n_.heads; ++h) {
      const T* mode = values_ + at_.modes + 3 * h;
      T* g = gradient + at_.modes + 3 * h;
      const T mean = mode[0] * g[0] + mode[1] * g[1] + mode[2] * g[2];
      for (int m = 0; m < 3; ++m) g[m] = mode[m] * (g[m] - mean);
    }
  }

  const DncParts& at() const { return at_; }
  const T* read_key(int64_t h) const { return values_ + h * n_.width; }
  T read_strength(int64_t h) const { return values_[at_.read_strengths + h]; }
  const T* write_key() const { return values_ + at_.write_key; }
  T write_strength() const { return values_[at_.write_strength]; }
  const T* erase() const { return values_ + at_.erase; }
  const T* write_vector() const { return values_ + at_.write_vector; }
  const T* free_gates() const { return values_ + at_.gates; }
  T allocation_gate() const { return values_[at_.gates + n_.heads]; }
  T write_gate() const { return values_[at_.gates + n_.heads + 1]; }
  const T* modes(int64_t h) const { return values_ + at_.modes + 3 * h; }  // backward, content, forward

 private:
  T strength(T raw) const { return softplus(raw) + (oneplus_ ? T(1) : T(0)); }
  static void distribution(const T* raw, T* out) {
    T top = raw[0] > raw[1] ? raw[0] : raw[1];
    top = raw[2] > top ? raw[2] : top;
    for (int m = 0; m < 3; ++m) out[m] = std::exp(raw[m] - top);
    const T sum = out[0] + out[1] + out[2];
    for (int m = 0; m < 3; ++m) out[m] /= sum;
  }
  static void sigmoid_times(int64_t n, const T* raw, T* gradient) {
    for (int64_t i = 0; i < n; ++i) gradient[i] *= logistic(raw[i]);
  }

  const DncSizes& n_;
  DncParts at_;
  bool oneplus_;
  T* values_;
};

}  // namespace ctm::CTM_LEVEL
