#include "nlm.h"

#include "nlm_direct.h"
#include "nlm_layout.h"
#include "nlm_tile.h"
#include "parallel.h"

namespace ctm::CTM_LEVEL {
namespace {

// Calls run(block index, tile scratch, buffer of `extra` elements) for every block.
template <class T, class Run>
void for_each_block(const NlmSizes& n, int64_t extra, int threads, const Run& run) {
  const int64_t tile = lanes<T> * CTM_ROWS * (n.memory + 2 * n.hidden);
  parallel_for<T>(threads, block_count<T>(n), tile + extra,
                  [&](int64_t index, T* scratch) { run(index, scratch, scratch + tile); });
}

template <class T, class X>
void forward_typed(const NlmSizes& n, const DropoutRows& drop, const T* packed, const X* x,
                   const NlmStrides& s, X* z, int64_t z_row, int threads) {
  const Masks<T> masks(n, drop);
  const T* blocks = blocks_of("nlm", packed);
  for_each_block<T>(n, 0, threads, [&](int64_t index, T* scratch, T*) {
    const BlockWeights<T> w = {n, blocks + index * block_elements<T>(n)};
    for_each_tile<T, X, CTM_ROWS>(n, masks, w, block_at<T>(n, index), scratch, 0, n.rows,
                                  [&](const auto& tile) { tile.forward(x, s, z, z_row); });
  });
}

template <class T, class X>
void direct_typed(const NlmSizes& n, const DropoutRows& drop, const Unpacked<T>& p, const X* x,
                  const NlmStrides& s, X* z, int64_t z_row, int threads) {
  const Masks<T> masks(n, drop);
  const int64_t blocks = block_count<T>(n), groups = (blocks + kTogether - 1) / kTogether;
  const int64_t scratch = kTogether * (n.memory + 2 * n.hidden) * lanes<T>;
  parallel_for<T>(threads, groups, scratch, [&](int64_t group, T* own) {
    int64_t block = group * kTogether;
    if (block + kTogether <= blocks)
      return Direct<T, X, kTogether>{n, masks, p, block, own}.run(x, s, z, z_row);
    for (; block < blocks; ++block) Direct<T, X, 1>{n, masks, p, block, own}.run(x, s, z, z_row);
  });
}

// The weight gradients of this many rows are summed apart before they join the rest: the rounding error of
// one sum over the rows of all ticks would be several times that of a matrix product.
constexpr int64_t kChunkRows = 128;

template <class T, class X>
void backward_typed(const NlmSizes& n, const DropoutRows& drop, const T* packed, const X* x,
                    const NlmStrides& s, const T* dz, int64_t dz_row, T* dx, const NlmStrides& dx_strides,
                    T* dpacked, int threads) {
  const Masks<T> masks(n, drop);
  const int64_t size = block_elements<T>(n);
  const T* blocks = blocks_of("nlm", packed);
  const bool apart = dpacked && n.rows > kChunkRows;
  for_each_block<T>(n, apart ? size : 0, threads, [&](int64_t index, T* scratch, T* part) {
    const BlockWeights<T> w = {n, blocks + index * size};
    const Block block = block_at<T>(n, index);
    T* total = dpacked ? dpacked + kHeader<T> + index * size : nullptr;
    for (int64_t row = 0; row < n.rows; row += kChunkRows) {
      const int64_t end = row + kChunkRows < n.rows ? row + kChunkRows : n.rows;
      if (apart) clear(part, size);
      for_each_tile<T, X, CTM_ROWS>(n, masks, w, block, scratch, row, end, [&](const auto& tile) {
        tile.backward(x, s, dz, dz_row, dx, dx_strides, apart ? part : total);
      });
      if (apart)
        for (int64_t i = 0; i < size; i += lanes<T>) store(total + i, load(total + i) + load(part + i));
    }
  });
}

template <class T>
const T* as(const void* p) {
  return static_cast<const T*>(p);
}
template <class T>
T* as(void* p) {
  return static_cast<T*>(p);
}

int64_t packed_size(Storage type, const NlmSizes& n) {
  return type == Storage::f64 ? packed_elements<double>(n) : packed_elements<float>(n);
}

void pack(Storage type, const NlmSizes& n, const void* w1, const void* b1, double t1, const void* w2,
          const void* b2, double t2, void* packed, int threads) {
  if (type == Storage::f64)
    pack_typed<double>(n, as<double>(w1), as<double>(b1), t1, as<double>(w2), as<double>(b2), t2,
                       as<double>(packed), threads);
  else
    pack_typed<float>(n, as<float>(w1), as<float>(b1), static_cast<float>(t1), as<float>(w2), as<float>(b2),
                      static_cast<float>(t2), as<float>(packed), threads);
}

void unpack(Storage type, const NlmSizes& n, const void* packed, const void* grad, double t1, double t2,
            void* w1, void* b1, void* t1_grad, void* w2, void* b2, void* t2_grad, int threads) {
  if (type == Storage::f64)
    unpack_typed<double>(n, as<double>(packed), as<double>(grad), t1, t2, as<double>(w1), as<double>(b1),
                         as<double>(t1_grad), as<double>(w2), as<double>(b2), as<double>(t2_grad), threads);
  else
    unpack_typed<float>(n, as<float>(packed), as<float>(grad), static_cast<float>(t1), static_cast<float>(t2),
                        as<float>(w1), as<float>(b1), as<float>(t1_grad), as<float>(w2), as<float>(b2),
                        as<float>(t2_grad), threads);
}

void forward(Storage type, const NlmSizes& n, const DropoutRows& drop, const void* packed, const void* x,
             NlmStrides s, void* z, int64_t z_row, int threads) {
  if (type == Storage::f64)
    forward_typed(n, drop, as<double>(packed), as<double>(x), s, as<double>(z), z_row, threads);
  else if (type == Storage::f32)
    forward_typed(n, drop, as<float>(packed), as<float>(x), s, as<float>(z), z_row, threads);
  else
    forward_typed(n, drop, as<float>(packed), as<BFloat16>(x), s, as<BFloat16>(z), z_row, threads);
}

template <class T>
Unpacked<T> unpacked(const void* w1, const void* b1, double t1, const void* w2, const void* b2, double t2) {
  return {as<T>(w1), as<T>(b1), as<T>(w2), as<T>(b2), T(1) / static_cast<T>(t1), T(1) / static_cast<T>(t2)};
}

void direct(Storage type, const NlmSizes& n, const DropoutRows& drop, const void* w1, const void* b1,
            double t1, const void* w2, const void* b2, double t2, const void* x, NlmStrides s, void* z,
            int64_t z_row, int threads) {
  if (type == Storage::f64)
    direct_typed(n, drop, unpacked<double>(w1, b1, t1, w2, b2, t2), as<double>(x), s, as<double>(z), z_row,
                 threads);
  else if (type == Storage::f32)
    direct_typed(n, drop, unpacked<float>(w1, b1, t1, w2, b2, t2), as<float>(x), s, as<float>(z), z_row,
                 threads);
  else
    direct_typed(n, drop, unpacked<float>(w1, b1, t1, w2, b2, t2), as<BFloat16>(x), s, as<BFloat16>(z), z_row,
                 threads);
}

void backward(Storage type, const NlmSizes& n, const DropoutRows& drop, const void* packed, const void* x,
              NlmStrides s, const void* dz, int64_t dz_row, void* dx, NlmStrides dx_strides, void* dpacked,
              int threads) {
  if (type == Storage::f64)
    backward_typed(n, drop, as<double>(packed), as<double>(x), s, as<double>(dz), dz_row, as<double>(dx),
                   dx_strides, as<double>(dpacked), threads);
  else if (type == Storage::f32)
    backward_typed(n, drop, as<float>(packed), as<float>(x), s, as<float>(dz), dz_row, as<float>(dx),
                   dx_strides, as<float>(dpacked), threads);
  else
    backward_typed(n, drop, as<float>(packed), as<BFloat16>(x), s, as<float>(dz), dz_row, as<float>(dx),
                   dx_strides, as<float>(dpacked), threads);
}

}  // namespace

extern const NlmKernels nlm_kernels = {packed_size, pack, unpack, forward, direct, backward};

}  // namespace ctm::CTM_LEVEL
