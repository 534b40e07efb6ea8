// Products of bfloat16 matrices by oneDNN: [..., M, K] x [..., K, N], summed in float32.
//
// Operands may have any strides with a unit stride along one side of the matrix, so that a
// transposed matrix is read where it lies. The result is cut into pieces along one of its axes, as
// the caller gives them: a piece has all of K, so that the cut changes no sum.
#include <unordered_map>
#include <vector>

#include "parallel.h"
#include "primitives.h"

namespace distill {
namespace {

using Ints = ffi::Span<const int64_t>;
using Matmul = dnnl::matmul;

// An array of matrices: dimensions, strides in elements, and the type.
struct Array {
  Dims dims, strides;
  Type type;

  memory::desc desc() const { return memory::desc(dims, type, strides); }
  int64_t offset(int64_t axis, int64_t index) const {
    return index * strides[axis] * static_cast<int64_t>(bytes_of(type));
  }
};

struct Product {
  Array x, y, z;

  // Of `length` indices along an axis of the result, in place of all.
  Product of(size_t axis, int64_t length) const {
    Product p = *this;
    p.z.dims[axis] = length;
    if (axis + 1 < z.dims.size()) p.x.dims[axis] = length;
    if (axis + 2 != z.dims.size()) p.y.dims[axis] = length;
    return p;
  }
};

std::shared_ptr<Cache<Matmul>::Entry> made(const Product& p) {
  static Cache<Matmul> cache;
  std::vector<int64_t> key;
  for (auto* array : {&p.x, &p.y, &p.z}) {
    key.push_back((int64_t)array->type);
    key.insert(key.end(), array->dims.begin(), array->dims.end());
    key.insert(key.end(), array->strides.begin(), array->strides.end());
  }
  return cache.get(key, [&] {
    return Matmul::primitive_desc(engine(), p.x.desc(), p.y.desc(), p.z.desc(), attributes());
  });
}

Dims contiguous(const Dims& dims) {
  Dims strides(dims.size(), 1);
  for (size_t i = dims.size() - 1; i > 0; i--) strides[i - 1] = strides[i] * dims[i];
  return strides;
}

// Arguments: sizes is (batch axes ..., M, K, N); piece is how many indices along `axis` of the
// result, [batch ..., M, N], are computed at a time.
ffi::Error MatmulImpl(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer y,
                      ffi::Result<ffi::AnyBuffer> z, Ints sizes, Ints x_strides, Ints y_strides,
                      int64_t axis, int64_t piece) {
  size_t batch = sizes.size() - 3;
  int64_t m = sizes[batch], k = sizes[batch + 1], n = sizes[batch + 2];
  auto array = [&](int64_t rows, int64_t columns, Dims strides, ffi::DataType type) {
    Dims dims(sizes.begin(), sizes.begin() + batch);
    dims.push_back(rows);
    dims.push_back(columns);
    if (strides.empty()) strides = contiguous(dims);
    return Array{dims, strides, type_of(type)};
  };
  Product whole{array(m, k, Dims(x_strides.begin(), x_strides.end()), x.element_type()),
                array(k, n, Dims(y_strides.begin(), y_strides.end()), y.element_type()),
                array(m, n, {}, z->element_type())};
  int64_t rows = whole.z.dims[axis], count = (rows + piece - 1) / piece;
  bool of_x = axis <= (int64_t)batch, of_y = axis != (int64_t)batch;
  char* from_x = static_cast<char*>(x.untyped_data());
  char* from_y = static_cast<char*>(y.untyped_data());
  char* to = static_cast<char*>(z->untyped_data());
  try {
    OneThread one_thread;
    auto most = made(whole.of(axis, std::min(piece, rows)));
    auto last = made(whole.of(axis, rows - (count - 1) * piece));
    parallel(pool, count, [=](int64_t part) {
      auto& entry = part + 1 < count ? most : last;
      auto& desc = entry->desc;
      int64_t begin = part * piece;
      auto at = [](const memory::desc& d, char* p) { return memory(d, engine(), p); };
      auto scratch = desc.scratchpad_desc();
      std::unordered_map<int, memory> arguments{
          {DNNL_ARG_SRC, at(desc.src_desc(), from_x + (of_x ? whole.x.offset(axis, begin) : 0))},
          {DNNL_ARG_WEIGHTS,
           at(desc.weights_desc(), from_y + (of_y ? whole.y.offset(axis, begin) : 0))},
          {DNNL_ARG_DST, at(desc.dst_desc(), to + whole.z.offset(axis, begin))},
          {DNNL_ARG_SCRATCHPAD, memory(scratch, engine(), scratchpad(scratch.get_size()))}};
      entry->primitive.execute(stream(), arguments);
      stream().wait();
    });
  } catch (const dnnl::error& error) {
    return ffi::Error(ffi::ErrorCode::kInternal, error.what());
  }
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(distill_matmul, MatmulImpl,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<Ints>("sizes")
                                  .Attr<Ints>("x_strides")
                                  .Attr<Ints>("y_strides")
                                  .Attr<int64_t>("axis")
                                  .Attr<int64_t>("piece"));

}  // namespace distill
