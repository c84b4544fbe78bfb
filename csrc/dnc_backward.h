// Gradients of all steps of one sample of the Differentiable Neural Computer.
//
// Memory and links are not kept by the forward: they are replayed from the weightings of the steps, first to
// the start of every segment of about sqrt(T) steps, then inside the segment that the backward is in.
#pragma once

#include "dnc_steps.h"

namespace ctm::CTM_LEVEL {

template <class T, class Links>
class Backward : Machine<T, Links> {
  using Base = Machine<T, Links>;
  using State = typename Base::State;
  using Base::n_, Base::pad_, Base::plane_, Base::parts_, Base::allocation_, Base::links_;

 public:
  Backward(const DncSizes& n, const DncOptions& options, Arena<T>& arena)
      : Base(n, options, arena),
        detach_(options.detach_writes),
        length_(segment_length(n.steps)),
        d_(this->take(arena)),
        dusage_(arena.take(pad_)),
        dwrite_(arena.take(pad_)),
        dread_(arena.take(n.heads * pad_)),
        usage_before_(arena.take(pad_)),
        write_before_(arena.take(pad_)),
        read_before_(arena.take(n.heads * pad_)),
        usage_(arena.take(pad_)),
        write_(arena.take(pad_)),
        read_(arena.take(n.heads * pad_)),
        cosine_(arena.take(pad_)),
        similar_(arena.take(pad_)),
        free_(arena.take(pad_)),
        scratch_(arena.take(pad_)),
        columns_(arena.take(n.heads * pad_)),
        along_(arena.take(n.heads * pad_)),
        scales_(arena.take(2 * n.heads)) {
    Arena<T> one{nullptr};
    this->take(one);
    state_size_ = one.used;
    states_ = arena.take((segments() + length_) * state_size_);
  }

  void run(const DncInputs<T>& in, const DncOutputs<T>& saved, const DncOutputs<const T>& g,
           const DncGradients<T>& out, Place place) {
    in_ = &in, saved_ = &saved, place_ = place;
    this->Base::read(in, place, start(0));
    for (int64_t s = 1; s < segments(); ++s)
      for (int64_t t = (s - 1) * length_; t < s * length_; ++t)
        replay(t == (s - 1) * length_ ? start(s - 1) : start(s), t, start(s));
    begin(g);
    for (int64_t s = segments() - 1; s >= 0; --s) {
      const int64_t first = s * length_, end = first + length_ < n_.steps ? first + length_ : n_.steps;
      for (int64_t t = first; t < end; ++t) replay(state(s, t - first), t, state(s, t - first + 1));
      for (int64_t t = end - 1; t >= first; --t)
        step(t, state(s, t - first), state(s, t - first + 1), g, place.at(out.interface, n_.interface(), t));
    }
    finish(out);
  }

 private:
  static int64_t segment_length(int64_t steps) {
    int64_t length = 1;
    while (length * length < steps) ++length;
    return length;
  }
  int64_t segments() const { return (n_.steps + length_ - 1) / length_; }
  State stored(int64_t index) const {
    Arena<T> arena{states_ + index * state_size_};
    return this->take(arena);
  }
  State start(int64_t segment) const { return stored(segment); }
  // Before step `offset` of a segment.
  State state(int64_t segment, int64_t offset) const {
    return offset == 0 ? start(segment) : stored(segments() + offset - 1);
  }

  const T* raw(int64_t t) const { return place_.at(in_->interface, n_.interface(), t); }
  void replay(const State& from, int64_t t, const State& to) const {
    parts_.read(raw(t));
    pad(1, n_.slots, place_.at(saved_->write, n_.slots, t), write_);
    this->advance(from, write_, to);
  }

  void begin(const DncOutputs<const T>& g) const {
    slots_to_lanes(plane_, place_.at(g.memory, n_.slots * n_.width), d_.memory);
    pad(1, n_.slots, place_.at(g.precedence, n_.slots), d_.precedence);
    links_.read(place_.at(g.link, n_.slots * n_.links), nullptr, d_.rows);
    clear(dusage_, pad_);
    clear(dwrite_, pad_);
    clear(dread_, n_.heads * pad_);
  }
  void finish(const DncGradients<T>& out) const {
    lanes_to_slots(plane_, d_.memory, place_.at(out.memory, n_.slots * n_.width));
    copy(n_.slots, d_.precedence, place_.at(out.precedence, n_.slots));
    links_.write(d_.rows, place_.at(out.link, n_.slots * n_.links), nullptr);
    copy(n_.slots, dusage_, place_.at(out.usage, n_.slots));
    copy(n_.slots, dwrite_, place_.at(out.write, n_.slots));
    unpad(n_.heads, n_.slots, dread_, place_.at(out.read, n_.heads * n_.slots));
  }

  // Turns the gradients of what follows step t into those of what goes before it; writes d, that of the
  // interface vector.
  void step(int64_t t, const State& before, const State& after, const DncOutputs<const T>& g, T* d) const {
    parts_.read(raw(t));
    load_weightings(t);
    add(n_.slots, place_.at(g.usage, n_.slots, t), dusage_);
    add(n_.slots, place_.at(g.write, n_.slots, t), dwrite_);
    add_rows(n_.heads, n_.slots, place_.at(g.read, n_.heads * n_.slots, t), dread_);
    reads(after, place_.at(g.reads, n_.heads * n_.width, t));
    read_contents(after, d);
    links(before, after, d);
    written(before, d);
    write_weighting(before, d);
    usage(d);
    parts_.backward(raw(t), d);
  }

  void load_weightings(int64_t t) const {
    const int64_t slots = n_.slots, heads = n_.heads * slots;
    pad(1, slots, place_.at(saved_->usage, slots, t), usage_);
    pad(1, slots, place_.at(saved_->write, slots, t), write_);
    pad(n_.heads, n_.slots, place_.at(saved_->read, heads, t), read_);
    pad(1, slots, t ? place_.at(saved_->usage, slots, t - 1) : place_.at(in_->usage, slots), usage_before_);
    pad(1, slots, t ? place_.at(saved_->write, slots, t - 1) : place_.at(in_->write, slots), write_before_);
    pad(n_.heads, n_.slots, t ? place_.at(saved_->read, heads, t - 1) : place_.at(in_->read, heads),
        read_before_);
  }

  // reads[h] = read[h] . memory
  void reads(const State& after, const T* dreads) const {
    for (int64_t h = 0; h < n_.heads; ++h)
      add_combined(pad_, n_.width, dreads + h * n_.width, 1, after.memory, dread_ + h * pad_);
    for (int64_t w = 0; w < n_.width; ++w)
      add_combined(pad_, n_.heads, dreads + w, n_.width, read_, d_.memory + w * pad_);
    for (int64_t h = 0; h < n_.heads; ++h) clear(dread_ + h * pad_ + n_.slots, pad_ - n_.slots);
  }

  void read_contents(const State& after, T* d) const {
    const Content<T> content = this->content(after);
    for (int64_t h = 0; h < n_.heads; ++h) {
      const T *key = parts_.read_key(h), *g = dread_ + h * pad_;
      const T norm = content.cosines(key, cosine_), strength = parts_.read_strength(h);
      content.weights(cosine_, strength, similar_);
      d[parts_.at().modes + 3 * h + 1] = dot(pad_, g, similar_);
      for (int64_t v = 0; v < pad_; v += lanes<T>) store(scratch_ + v, parts_.modes(h)[1] * load(g + v));
      d[parts_.at().read_strengths + h] =
          content.backward(key, strength, norm, similar_, cosine_, scratch_, d + h * n_.width, d_.memory);
    }
  }

  void links(const State& before, const State& after, T* d) const {
    T *forward = scales_, *backward = scales_ + n_.heads;
    for (int64_t h = 0; h < n_.heads; ++h) backward[h] = parts_.modes(h)[0], forward[h] = parts_.modes(h)[2];
    links_.retrace(after.rows, {n_.heads, read_before_}, {dread_, forward, dread_, backward}, d_.rows,
                   columns_, along_);
    for (int64_t h = 0; h < n_.heads; ++h) {
      const T *read = read_before_ + h * pad_, *column = columns_ + h * pad_, *along = along_ + h * pad_;
      d[parts_.at().modes + 3 * h] = dot(pad_, read, along);
      d[parts_.at().modes + 3 * h + 2] = dot(pad_, read, column);
      for (int64_t v = 0; v < pad_; v += lanes<T>)
        store(dread_ + h * pad_ + v, forward[h] * load(column + v) + backward[h] * load(along + v));
    }
    precedence_backward(n_.slots, write_, before.precedence, d_.precedence, dwrite_);
    links_.recede(before.rows, after.rows, write_, before.precedence, d_.rows, dwrite_, d_.precedence);
  }

  // memory = memory_before (1 - write erase) + write write_vector
  void written(const State& before, T* d) const {
    reduce(plane_, write_, d_.memory, T(0), d + parts_.at().write_vector);
    for (int64_t w = 0; w < n_.width; ++w) {
      const T erase = parts_.erase()[w], vector = parts_.write_vector()[w];
      const T* old = before.memory + w * pad_;
      T* gradient = d_.memory + w * pad_;
      Vec<T> erased = {};
      for (int64_t v = 0; v < pad_; v += lanes<T>) {
        const Vec<T> g = load(gradient + v), m = load(old + v), weight = load(write_ + v);
        erased += g * weight * m;
        store(dwrite_ + v, load(dwrite_ + v) + g * (vector - erase * m));
        store(gradient + v, g * (T(1) - weight * erase));
      }
      d[parts_.at().erase + w] = -sum_lanes<T>(erased);
    }
    clear(dwrite_ + n_.slots, pad_ - n_.slots);
  }

  void write_weighting(const State& before, T* d) const {
    const Content<T> content = this->content(before);
    const T norm = content.cosines(parts_.write_key(), cosine_), strength = parts_.write_strength();
    content.weights(cosine_, strength, similar_);
    clear(free_ + n_.slots, pad_ - n_.slots);
    allocation_.sort(usage_);
    allocation_.forward(usage_, free_);
    const T gate = parts_.allocation_gate(), write = parts_.write_gate();
    Vec<T> dgate = {}, dwrite = {};
    for (int64_t v = 0; v < pad_; v += lanes<T>) {
      const Vec<T> g = load(dwrite_ + v), free = load(free_ + v), similar = load(similar_ + v);
      dwrite += g * (gate * free + (T(1) - gate) * similar);
      dgate += write * g * (free - similar);
      store(free_ + v, gate * (write * g));
      store(scratch_ + v, (T(1) - gate) * (write * g));
    }
    const DncParts& at = parts_.at();
    d[at.gates + n_.heads] = sum_lanes<T>(dgate);
    d[at.gates + n_.heads + 1] = sum_lanes<T>(dwrite);
    d[at.write_strength] = content.backward(parts_.write_key(), strength, norm, similar_, cosine_, scratch_,
                                            d + at.write_key, d_.memory);
    allocation_.backward(usage_, free_, dusage_);
  }

  // usage = (usage_before + write_before - usage_before write_before) prod_h(1 - free_gates[h]
  // read_before[h])
  void usage(T* d) const {
    const T* gates = parts_.free_gates();
    for (int64_t h = 0; h < n_.heads; ++h) {
      Vec<T> dgate = {};
      for (int64_t v = 0; v < pad_; v += lanes<T>) {
        const Vec<T> u = load(usage_before_ + v), w = load(write_before_ + v);
        Vec<T> others = load(dusage_ + v) * (u + w - u * w);
        for (int64_t k = 0; k < n_.heads; ++k)
          if (k != h) others *= T(1) - gates[k] * load(read_before_ + k * pad_ + v);
        dgate += others * load(read_before_ + h * pad_ + v);
        store(dread_ + h * pad_ + v, load(dread_ + h * pad_ + v) - others * gates[h]);
      }
      d[parts_.at().gates + h] = -sum_lanes<T>(dgate);
    }
    for (int64_t v = 0; v < pad_; v += lanes<T>) {
      const Vec<T> u = load(usage_before_ + v), w = load(write_before_ + v);
      Vec<T> g = load(dusage_ + v);
      for (int64_t h = 0; h < n_.heads; ++h) g *= T(1) - gates[h] * load(read_before_ + h * pad_ + v);
      store(dusage_ + v, g * (T(1) - w));
      store(dwrite_ + v, detach_ ? Vec<T>{} : g * (T(1) - u));
    }
  }

  const bool detach_;
  const int64_t length_;
  State d_;  // gradients of memory, precedence and links
  T *dusage_, *dwrite_, *dread_;
  T *usage_before_, *write_before_, *read_before_, *usage_, *write_, *read_;
  T *cosine_, *similar_, *free_, *scratch_, *columns_, *along_, *scales_;
  int64_t state_size_;
  T* states_;
  const DncInputs<T>* in_ = nullptr;
  const DncOutputs<T>* saved_ = nullptr;
  Place place_ = {0, 0};
};

}  // namespace ctm::CTM_LEVEL
