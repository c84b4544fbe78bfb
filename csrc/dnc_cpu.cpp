#include "dnc.h"

#include "dnc_backward.h"
#include "dnc_forward.h"
#include "parallel.h"

// Every sample is worked through on its own, all its steps one after the other, a lane a slot.

namespace ctm::CTM_LEVEL {
namespace {

// Calls body(worker, place) for every sample; a Worker is made of (arguments..., arena) for every thread.
template <class Worker, class T, class Body, class... Arguments>
void for_samples(const DncSizes& n, int threads, const Body& body, const Arguments&... arguments) {
  Arena<T> counted{nullptr};
  Worker(arguments..., counted);
  parallel_for<T>(threads, n.batch, counted.used, [&](int64_t sample, T* scratch) {
    Arena<T> arena{scratch};
    Worker worker(arguments..., arena);
    body(worker, Place{n.batch, sample});
  });
}

template <class T>
void forward(const DncSizes& n, const DncOptions& options, const DncInputs<T>& in, const DncOutputs<T>& out,
             int64_t* columns, int threads) {
  const auto run = [&](auto& worker, Place place) { worker.run(in, out, columns, place); };
  if (n.sparse)
    for_samples<Forward<T, SparseLinks<T>>, T>(n, threads, run, n, options);
  else
    for_samples<Forward<T, DenseLinks<T>>, T>(n, threads, run, n, options);
}

template <class T>
void backward(const DncSizes& n, const DncOptions& options, const DncInputs<T>& in,
              const DncOutputs<T>& saved, const DncOutputs<const T>& g, const DncGradients<T>& out,
              int threads) {
  const auto run = [&](auto& worker, Place place) { worker.run(in, saved, g, out, place); };
  if (n.sparse)
    for_samples<Backward<T, SparseLinks<T>>, T>(n, threads, run, n, options);
  else
    for_samples<Backward<T, DenseLinks<T>>, T>(n, threads, run, n, options);
}

// One update of links and precedence.
template <class T, class Links>
class LinkUpdate {
 public:
  LinkUpdate(const DncSizes& n, Arena<T>& arena)
      : n_(n),
        pad_(whole<T>(n.slots)),
        links_(n.slots, n.links, arena),
        before_(links_.take(arena)),
        after_(links_.take(arena)),
        d_(links_.take(arena)),
        precedence_(arena.take(pad_)),
        write_(arena.take(pad_)),
        dprecedence_(arena.take(pad_)),
        dwrite_(arena.take(pad_)),
        read_(arena.take(n.heads * pad_)),
        forward_(arena.take(n.heads * pad_)),
        backward_(arena.take(n.heads * pad_)),
        columns_(arena.take(n.heads * pad_)),
        along_(arena.take(n.heads * pad_)),
        ones_(arena.take(n.heads)) {}

  void forward(const DncInputs<T>& in, const DncLinks<T>& out, int64_t* columns, Place place) const {
    read(in, place);
    const int64_t links = n_.slots * n_.links;
    links_.write(after_, place.at(out.link, links), n_.sparse ? place.at(columns, links) : nullptr);
    links_.follow(after_, {n_.heads, read_}, forward_, backward_);
    unpad(n_.heads, n_.slots, forward_, place.at(out.forward, n_.heads * n_.slots));
    unpad(n_.heads, n_.slots, backward_, place.at(out.backward, n_.heads * n_.slots));
    next_precedence(n_.slots, write_, precedence_, precedence_);
    copy(n_.slots, precedence_, place.at(out.precedence, n_.slots));
  }

  void backward(const DncInputs<T>& in, const DncLinks<const T>& g, const DncGradients<T>& out,
                Place place) const {
    read(in, place);
    const int64_t heads = n_.heads * n_.slots;
    links_.read(place.at(g.link, n_.slots * n_.links), nullptr, d_);
    pad(n_.heads, n_.slots, place.at(g.forward, heads), forward_);
    pad(n_.heads, n_.slots, place.at(g.backward, heads), backward_);
    std::fill_n(ones_, n_.heads, T(1));
    links_.retrace(after_, {n_.heads, read_}, {forward_, ones_, backward_, ones_}, d_, columns_, along_);
    add(n_.heads * pad_, along_, columns_);
    unpad(n_.heads, n_.slots, columns_, place.at(out.read, heads));

    pad(1, n_.slots, place.at(g.precedence, n_.slots), dprecedence_);
    clear(dwrite_, pad_);
    precedence_backward(n_.slots, write_, precedence_, dprecedence_, dwrite_);
    links_.recede(before_, after_, write_, precedence_, d_, dwrite_, dprecedence_);
    copy(n_.slots, dwrite_, place.at(out.write, n_.slots));
    copy(n_.slots, dprecedence_, place.at(out.precedence, n_.slots));
    links_.write(d_, place.at(out.link, n_.slots * n_.links), nullptr);
  }

 private:
  void read(const DncInputs<T>& in, Place place) const {
    const int64_t links = n_.slots * n_.links;
    links_.read(place.at(in.link, links), n_.sparse ? place.at(in.columns, links) : nullptr, before_);
    pad(1, n_.slots, place.at(in.precedence, n_.slots), precedence_);
    pad(1, n_.slots, place.at(in.write, n_.slots), write_);
    pad(n_.heads, n_.slots, place.at(in.read, n_.heads * n_.slots), read_);
    links_.advance(before_, write_, precedence_, after_);
  }

  const DncSizes& n_;
  const int64_t pad_;
  const Links links_;
  typename Links::Rows before_, after_, d_;
  T *precedence_, *write_, *dprecedence_, *dwrite_, *read_, *forward_, *backward_, *columns_, *along_, *ones_;
};

template <class T>
void link_forward(const DncSizes& n, const DncInputs<T>& in, const DncLinks<T>& out, int64_t* columns,
                  int threads) {
  const auto run = [&](auto& worker, Place place) { worker.forward(in, out, columns, place); };
  if (n.sparse)
    for_samples<LinkUpdate<T, SparseLinks<T>>, T>(n, threads, run, n);
  else
    for_samples<LinkUpdate<T, DenseLinks<T>>, T>(n, threads, run, n);
}

template <class T>
void link_backward(const DncSizes& n, const DncInputs<T>& in, const DncLinks<const T>& g,
                   const DncGradients<T>& out, int threads) {
  const auto run = [&](auto& worker, Place place) { worker.backward(in, g, out, place); };
  if (n.sparse)
    for_samples<LinkUpdate<T, SparseLinks<T>>, T>(n, threads, run, n);
  else
    for_samples<LinkUpdate<T, DenseLinks<T>>, T>(n, threads, run, n);
}

template <class T>
void allocation(const DncSizes& n, double eps, const T* usage, T* out, int threads) {
  for_samples<Allocation<T>, T>(
      n, threads,
      [&](auto& worker, Place place) {
        worker.sort(place.at(usage, n.slots));
        worker.forward(place.at(usage, n.slots), place.at(out, n.slots));
      },
      n.slots, static_cast<T>(eps));
}

template <class T>
void allocation_backward(const DncSizes& n, double eps, const T* usage, const T* gradient, T* dusage,
                         int threads) {
  const auto run = [&](auto& worker, Place place) {
    worker.sort(place.at(usage, n.slots));
    clear(place.at(dusage, n.slots), n.slots);
    worker.backward(place.at(usage, n.slots), place.at(gradient, n.slots), place.at(dusage, n.slots));
  };
  for_samples<Allocation<T>, T>(n, threads, run, n.slots, static_cast<T>(eps));
}

template <class T>
constexpr DncTable<T> table = {forward<T>,       backward<T>,   link_forward<T>,
                               link_backward<T>, allocation<T>, allocation_backward<T>};

}  // namespace

extern const DncKernels dnc_kernels = {table<float>, table<double>};

}  // namespace ctm::CTM_LEVEL
