// oneDNN's primitives: made once for a shape, run on the calling thread.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "oneapi/dnnl/dnnl.hpp"
#include "xla/ffi/api/ffi.h"

namespace distill {

using dnnl::memory;
using Dims = memory::dims;
using Type = memory::data_type;

inline dnnl::engine& engine() {
  static dnnl::engine e(dnnl::engine::kind::cpu, 0);
  return e;
}

inline dnnl::stream& stream() {
  thread_local dnnl::stream s(engine());
  return s;
}

inline Type type_of(xla::ffi::DataType t) {
  return t == xla::ffi::DataType::BF16 ? Type::bf16 : Type::f32;
}

inline size_t bytes_of(Type t) { return memory::data_type_size(t); }

// Primitives are made once for a shape and kept: making one compiles code.
template <class Primitive>
class Cache {
 public:
  struct Entry {
    typename Primitive::primitive_desc desc;
    Primitive primitive;
  };
  template <class Make>
  std::shared_ptr<Entry> get(const std::vector<int64_t>& key, Make make) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto& entry = entries_[key];
    if (!entry) {
      auto desc = make();
      entry = std::make_shared<Entry>(Entry{desc, Primitive(desc)});
    }
    return entry;
  }

 private:
  std::map<std::vector<int64_t>, std::shared_ptr<Entry>> entries_;
  std::mutex mutex_;
};

inline dnnl::primitive_attr attributes() {
  dnnl::primitive_attr a;
  a.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  return a;
}

}  // namespace distill
