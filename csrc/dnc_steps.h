// What forward and backward of one sample share: the state beside the memory, and the parts of a step.
#pragma once

#include "dnc_content.h"
#include "dnc_interface.h"
#include "dnc_links.h"
#include "dnc_sparse.h"
#include "dnc_usage.h"

namespace ctm::CTM_LEVEL {

// What a step leaves behind and the next one changes, of one sample.
template <class T, class Rows>
struct Slots {
  T *memory, *norms;  // (W, P), (P)
  T* precedence;
  Rows rows;
};

// Where a tensor (T, B, size) or (B, size) holds what belongs to one sample.
struct Place {
  int64_t batch, sample;
  template <class T>
  T* at(T* data, int64_t size, int64_t step = 0) const {
    return data + (step * batch + sample) * size;
  }
};

template <class T, class Links>
class Machine {
 public:
  using State = Slots<T, typename Links::Rows>;

  Machine(const DncSizes& n, const DncOptions& options, Arena<T>& arena)
      : n_(n),
        plane_{n.slots, n.width, whole<T>(n.slots)},
        pad_(plane_.padded),
        eps_(static_cast<T>(options.eps)),
        parts_(n, options.oneplus, arena),
        allocation_(n.slots, static_cast<T>(options.usage_eps), arena),
        links_(n.slots, n.links, arena) {}

  State take(Arena<T>& arena) const {
    return {arena.take(n_.width * pad_), arena.take(pad_), arena.take(pad_), links_.take(arena)};
  }
  void read(const DncInputs<T>& in, Place place, const State& state) const {
    slots_to_lanes(plane_, place.at(in.memory, n_.slots * n_.width), state.memory);
    slot_norms(plane_, state.memory, eps_, state.norms);
    pad(1, n_.slots, place.at(in.precedence, n_.slots), state.precedence);
    const int64_t links = n_.slots * n_.links;
    links_.read(place.at(in.link, links), n_.sparse ? place.at(in.columns, links) : nullptr, state.rows);
  }
  Content<T> content(const State& state) const { return {plane_, state.memory, state.norms, eps_}; }

  // What writing with `write` makes of a state; `to` may be `from`.
  void advance(const State& from, const T* write, const State& to) const {
    for (int64_t w = 0; w < n_.width; ++w) {
      const T erase = parts_.erase()[w], add = parts_.write_vector()[w];
      const T* row = from.memory + w * pad_;
      for (int64_t v = 0; v < pad_; v += lanes<T>) {
        const Vec<T> weight = load(write + v);
        store(to.memory + w * pad_ + v, load(row + v) * (T(1) - weight * erase) + weight * add);
      }
    }
    slot_norms(plane_, to.memory, eps_, to.norms);
    links_.advance(from.rows, write, from.precedence, to.rows);
    next_precedence(n_.slots, write, from.precedence, to.precedence);
  }

 protected:
  const DncSizes n_;
  const Plane<T> plane_;
  const int64_t pad_;  // P
  const T eps_;
  const Interface<T> parts_;
  const Allocation<T> allocation_;
  const Links links_;
};

}  // namespace ctm::CTM_LEVEL
