// All steps of one sample of the Differentiable Neural Computer.
#pragma once

#include "dnc_steps.h"

namespace ctm::CTM_LEVEL {

template <class T, class Links>
class Forward : Machine<T, Links> {
  using Base = Machine<T, Links>;
  using Base::n_, Base::pad_, Base::plane_, Base::parts_, Base::allocation_, Base::links_;

 public:
  Forward(const DncSizes& n, const DncOptions& options, Arena<T>& arena)
      : Base(n, options, arena),
        state_(this->take(arena)),
        usage_(arena.take(pad_)),
        write_(arena.take(pad_)),
        free_(arena.take(pad_)),
        similar_(arena.take(pad_)),
        read_(arena.take(n.heads * pad_)),
        forward_(arena.take(n.heads * pad_)),
        backward_(arena.take(n.heads * pad_)) {}

  void run(const DncInputs<T>& in, const DncOutputs<T>& out, int64_t* columns, Place place) const {
    this->Base::read(in, place, state_);
    pad(1, n_.slots, place.at(in.usage, n_.slots), usage_);
    pad(1, n_.slots, place.at(in.write, n_.slots), write_);
    pad(n_.heads, n_.slots, place.at(in.read, n_.heads * n_.slots), read_);
    for (int64_t t = 0; t < n_.steps; ++t) {
      parts_.read(place.at(in.interface, n_.interface(), t));
      update_usage();
      choose_write();
      this->advance(state_, write_, state_);
      choose_reads();
      copy(n_.slots, usage_, place.at(out.usage, n_.slots, t));
      copy(n_.slots, write_, place.at(out.write, n_.slots, t));
      unpad(n_.heads, n_.slots, read_, place.at(out.read, n_.heads * n_.slots, t));
      T* reads = place.at(out.reads, n_.heads * n_.width, t);
      for (int64_t h = 0; h < n_.heads; ++h)
        reduce(plane_, read_ + h * pad_, state_.memory, T(0), reads + h * n_.width);
    }
    lanes_to_slots(plane_, state_.memory, place.at(out.memory, n_.slots * n_.width));
    copy(n_.slots, state_.precedence, place.at(out.precedence, n_.slots));
    const int64_t links = n_.slots * n_.links;
    links_.write(state_.rows, place.at(out.link, links), n_.sparse ? place.at(columns, links) : nullptr);
  }

 private:
  // Grown by the last write, freed by the last reads.
  void update_usage() const {
    for (int64_t v = 0; v < pad_; v += lanes<T>) {
      Vec<T> kept = splat(T(1));
      for (int64_t h = 0; h < n_.heads; ++h)
        kept *= T(1) - parts_.free_gates()[h] * load(read_ + h * pad_ + v);
      const Vec<T> usage = load(usage_ + v), write = load(write_ + v);
      store(usage_ + v, (usage + write - usage * write) * kept);
    }
  }

  void choose_write() const {
    clear(free_ + n_.slots, pad_ - n_.slots);
    allocation_.sort(usage_);
    allocation_.forward(usage_, free_);
    const Content<T> content = this->content(state_);
    content.cosines(parts_.write_key(), similar_);
    content.weights(similar_, parts_.write_strength(), similar_);
    const T gate = parts_.allocation_gate(), write = parts_.write_gate();
    for (int64_t v = 0; v < pad_; v += lanes<T>)
      store(write_ + v, write * (gate * load(free_ + v) + (T(1) - gate) * load(similar_ + v)));
  }

  void choose_reads() const {
    links_.follow(state_.rows, {n_.heads, read_}, forward_, backward_);
    const Content<T> content = this->content(state_);
    for (int64_t h = 0; h < n_.heads; ++h) {
      content.cosines(parts_.read_key(h), similar_);
      content.weights(similar_, parts_.read_strength(h), similar_);
      const T* mode = parts_.modes(h);
      const int64_t row = h * pad_;
      for (int64_t v = 0; v < pad_; v += lanes<T>)
        store(read_ + row + v, mode[0] * load(backward_ + row + v) + mode[1] * load(similar_ + v) +
                                   mode[2] * load(forward_ + row + v));
    }
  }

  typename Base::State state_;
  T *usage_, *write_, *free_, *similar_, *read_, *forward_, *backward_;
};

}  // namespace ctm::CTM_LEVEL
