// What the bindings of engines share: arrays that are held while native code reads them, one call at a time.
#pragma once

#include <atomic>
#include <list>

#include "bindings.h"

namespace ctm {

// Buffers of Python objects, held while native code reads or writes them.
class Buffers {
 public:
  static constexpr size_t kMost = 11;  // of one call

  Buffers() = default;
  Buffers(const Buffers&) = delete;
  Buffers& operator=(const Buffers&) = delete;
  ~Buffers() {
    for (size_t i = 0; i < held_; ++i) PyBuffer_Release(&views_[i]);
  }

  // `count` elements without gaps; null for None where nothing is expected.
  template <class T>
  T* get(const char* name, py::handle object, int64_t count) {
    if (object.is_none() && count == 0) return nullptr;
    const int flags = std::is_const_v<T> ? PyBUF_C_CONTIGUOUS : PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE;
    if (held_ == kMost) throw std::length_error("Engine: too many buffers");
    Py_buffer& view = views_[held_];
    if (PyObject_GetBuffer(object.ptr(), &view, flags)) throw py::error_already_set();
    ++held_;
    const int64_t expected = count * static_cast<int64_t>(sizeof(T));
    if (view.len != expected)
      throw py::value_error(std::string("Engine: ") + name + " must have " + std::to_string(expected) +
                            " bytes, got " + std::to_string(view.len));
    return static_cast<T*>(view.buf);
  }

 private:
  std::array<Py_buffer, kMost> views_;
  size_t held_ = 0;
};

// The arrays of a constructor by name; what is missing counts as None.
class Arrays {
 public:
  Arrays(const py::dict& named, int64_t weights) : named_(named), type_(static_cast<WeightType>(weights)) {
    if (weights < 0 || type_ > WeightType::i8)
      throw py::value_error("Engine: weights must be a WeightType, got " + std::to_string(weights));
  }

  template <class T = float>
  const T* get(const std::string& name, int64_t count) {
    held_.emplace_back();
    const py::object found = named_.contains(name) ? py::object(named_[name.c_str()]) : py::none();
    if (found.is_none() && count) throw py::value_error("Engine: " + name + " must be given, got none");
    return held_.back().get<const T>(name.c_str(), found, count);
  }

  // `rows` rows, each with a scale where the weights are int8.
  EngineMatrix matrix(const std::string& name, int64_t rows, int64_t columns) {
    const int64_t count = rows * columns;
    if (type_ == WeightType::i8) return {get<int8_t>(name, count), get(name + ".scale", rows)};
    if (type_ == WeightType::bf16) return {get<uint16_t>(name, count), nullptr};
    return {get(name, count), nullptr};
  }

 private:
  const py::dict& named_;
  const WeightType type_;
  std::list<Buffers> held_;
};

// One call at a time: they would write to the same memory.
struct Turn {
  std::atomic<bool>& busy;
  explicit Turn(std::atomic<bool>& b) : busy(b) {
    if (busy.exchange(true))
      throw std::runtime_error("Engine: one call at a time must run, got another from a second thread");
  }
  ~Turn() { busy = false; }
};

}  // namespace ctm
