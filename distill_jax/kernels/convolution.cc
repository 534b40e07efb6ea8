// Convolutions of NHWC maps with HWIO kernels, and their gradients, by oneDNN.
//
// The batch is split into parts (parallel.h). Kernels are reordered into oneDNN's layout on every
// call: they are small, and the maps stay as they are.
#include <cstring>
#include <map>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "parallel.h"
#include "primitives.h"

namespace distill {
namespace {

using Tag = memory::format_tag;

constexpr int64_t kParts = 16;        // of a batch
constexpr int64_t kGradientParts = 8; // of a batch, whose kernel gradients are added up

// What a convolution is, of `images` images of a batch.
struct Shape {
  Dims x, w, y;  // [N, C, H, W], [O, I, h, w] or [G, O / G, I / G, h, w], [N, O, H', W']
  Dims strides, before, after;
  Type type;

  Shape of(int64_t images) const {
    Shape s = *this;
    s.x[0] = s.y[0] = images;
    return s;
  }
  Tag kernel_tag() const { return w.size() == 5 ? Tag::hwigo : Tag::hwio; }
  int64_t x_bytes() const { return x[1] * x[2] * x[3] * bytes_of(type); }
  int64_t y_bytes() const { return y[1] * y[2] * y[3] * bytes_of(type); }
  std::vector<int64_t> key() const {
    std::vector<int64_t> k{(int64_t)type};
    for (auto* d : {&x, &w, &y, &strides, &before, &after}) k.insert(k.end(), d->begin(), d->end());
    return k;
  }
};

using Ints = ffi::Span<const int64_t>;

// Arguments: the dimensions in JAX's order; padding as (top, left, bottom, right).
Shape shape_of(Ints x, Ints w, Ints y, Ints strides, Ints padding, int64_t groups,
               ffi::DataType t) {
  Dims kernel = groups == 1
                    ? Dims{w[3], w[2], w[0], w[1]}
                    : Dims{groups, w[3] / groups, w[2], w[0], w[1]};
  return {{x[0], x[3], x[1], x[2]}, kernel, {y[0], y[3], y[1], y[2]},
          {strides[0], strides[1]}, {padding[0], padding[1]}, {padding[2], padding[3]},
          type_of(t)};
}

memory::desc map_desc(const Dims& d, Type t) { return memory::desc(d, t, Tag::nhwc); }
memory::desc kernel_desc(const Shape& s, Type t) { return memory::desc(s.w, t, Tag::any); }

struct Epilogue {
  bool bias = false, residual = false, relu = false;
};

using Forward = dnnl::convolution_forward;
using ToInput = dnnl::convolution_backward_data;
using ToKernel = dnnl::convolution_backward_weights;

std::shared_ptr<Cache<Forward>::Entry> forward(const Shape& s, Epilogue e) {
  static Cache<Forward> cache;
  auto key = s.key();
  key.insert(key.end(), {e.bias, e.residual, e.relu});
  return cache.get(key, [&] {
    dnnl::post_ops after;
    if (e.residual) after.append_binary(dnnl::algorithm::binary_add, map_desc(s.y, s.type));
    if (e.relu) after.append_prelu(0);
    auto a = attributes();
    a.set_post_ops(after);
    auto bias = e.bias ? memory::desc({s.y[1]}, Type::f32, Tag::x) : memory::desc();
    return Forward::primitive_desc(engine(), dnnl::prop_kind::forward_inference,
                                   dnnl::algorithm::convolution_direct, map_desc(s.x, s.type),
                                   kernel_desc(s, s.type), bias, map_desc(s.y, s.type), s.strides,
                                   s.before, s.after, a);
  });
}

std::shared_ptr<Cache<ToInput>::Entry> to_input(const Shape& s) {
  static Cache<ToInput> cache;
  return cache.get(s.key(), [&] {
    return ToInput::primitive_desc(engine(), dnnl::algorithm::convolution_direct,
                                   map_desc(s.x, s.type), kernel_desc(s, s.type),
                                   map_desc(s.y, s.type), s.strides, s.before, s.after,
                                   forward(s, {})->desc, attributes());
  });
}

std::shared_ptr<Cache<ToKernel>::Entry> to_kernel(const Shape& s) {
  static Cache<ToKernel> cache;
  return cache.get(s.key(), [&] {
    return ToKernel::primitive_desc(engine(), dnnl::algorithm::convolution_direct,
                                    map_desc(s.x, s.type), kernel_desc(s, Type::f32),
                                    map_desc(s.y, s.type), s.strides, s.before, s.after,
                                    forward(s, {})->desc, attributes());
  });
}

void reorder(memory::desc from_desc, void* from, memory::desc to_desc, void* to) {
  memory source(from_desc, engine(), from), target(to_desc, engine(), to);
  dnnl::reorder(source, target).execute(stream(), source, target);
  stream().wait();
}

// The kernel in the layout that a primitive wants.
void* reordered(const Shape& s, Type kernel_type, void* kernel, const memory::desc& wanted,
                Buffer& buffer) {
  void* to = buffer.get(wanted.get_size());
  reorder(memory::desc(s.w, kernel_type, s.kernel_tag()), kernel, wanted, to);
  return to;
}

memory at(const memory::desc& desc, void* data) { return memory(desc, engine(), data); }

template <class Entry>
void execute(const Entry& entry, std::unordered_map<int, memory> arguments) {
  auto scratch = entry.desc.scratchpad_desc();
  arguments.emplace(DNNL_ARG_SCRATCHPAD, at(scratch, scratchpad(scratch.get_size())));
  entry.primitive.execute(stream(), arguments);
  stream().wait();
}

char* bytes(void* p) { return static_cast<char*>(p); }

// oneDNN reports by exceptions, XLA by values.
template <class F>
ffi::Error guarded(F f) {
  try {
    OneThread one_thread;
    f();
    return ffi::Error::Success();
  } catch (const std::exception& e) {
    return ffi::Error::Internal(std::string("oneDNN: ") + e.what());
  }
}

// ReLU as a PReLU of slope 0, in the same pass: oneDNN's own makes 0 of NaN, which would hide a
// damaged network. Minus infinity becomes NaN.
float no_slope = 0;

ffi::Error ForwardImpl(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer w,
                       ffi::Buffer<ffi::F32> bias, ffi::AnyBuffer residual,
                       ffi::Result<ffi::AnyBuffer> y, Ints strides, Ints padding, int64_t groups,
                       bool relu) {
  return guarded([&] {
    Shape s = shape_of(x.dimensions(), w.dimensions(), y->dimensions(), strides, padding, groups,
                       x.element_type());
    Epilogue e{bias.element_count() > 0, residual.element_count() > 0, relu};
    Parts parts(s.x[0], kParts);
    auto first = forward(s.of(parts.length(0)), e);
    auto last = forward(s.of(parts.length(parts.count - 1)), e);
    Buffer buffer;
    void* kernel = reordered(s, type_of(w.element_type()), w.untyped_data(),
                             first->desc.weights_desc(), buffer);
    Buffer last_buffer;
    void* last_kernel = kernel;
    if (last->desc.weights_desc() != first->desc.weights_desc())
      last_kernel = reordered(s, type_of(w.element_type()), w.untyped_data(),
                              last->desc.weights_desc(), last_buffer);
    parallel(pool, parts.count, [&](int64_t i) {
      bool is_last = i == parts.count - 1;
      auto& entry = is_last ? *last : *first;
      char* to = bytes(y->untyped_data()) + parts.begin(i) * s.y_bytes();
      std::unordered_map<int, memory> arguments{
          {DNNL_ARG_SRC, at(entry.desc.src_desc(),
                            bytes(x.untyped_data()) + parts.begin(i) * s.x_bytes())},
          {DNNL_ARG_WEIGHTS, at(entry.desc.weights_desc(), is_last ? last_kernel : kernel)},
          {DNNL_ARG_DST, at(entry.desc.dst_desc(), to)}};
      if (e.bias) arguments.emplace(DNNL_ARG_BIAS, at(entry.desc.bias_desc(), bias.untyped_data()));
      if (e.residual)
        arguments.emplace(DNNL_ARG_ATTR_MULTIPLE_POST_OP(0) | DNNL_ARG_SRC_1,
                          at(entry.desc.dst_desc(), bytes(residual.untyped_data()) +
                                                        parts.begin(i) * s.y_bytes()));
      if (e.relu)
        arguments.emplace(DNNL_ARG_ATTR_MULTIPLE_POST_OP(e.residual) | DNNL_ARG_WEIGHTS,
                          at(memory::desc({1}, Type::f32, Tag::x), &no_slope));
      execute(entry, std::move(arguments));
    });
  });
}

ffi::Error ToInputImpl(ffi::ThreadPool pool, ffi::AnyBuffer g, ffi::AnyBuffer w,
                       ffi::Result<ffi::AnyBuffer> dx, Ints strides, Ints padding,
                       int64_t groups) {
  return guarded([&] {
    Shape s = shape_of(dx->dimensions(), w.dimensions(), g.dimensions(), strides, padding, groups,
                       g.element_type());
    Parts parts(s.x[0], kParts);
    auto first = to_input(s.of(parts.length(0)));
    auto last = to_input(s.of(parts.length(parts.count - 1)));
    Buffer buffer, last_buffer;
    void* kernel = reordered(s, type_of(w.element_type()), w.untyped_data(),
                             first->desc.weights_desc(), buffer);
    void* last_kernel = kernel;
    if (last->desc.weights_desc() != first->desc.weights_desc())
      last_kernel = reordered(s, type_of(w.element_type()), w.untyped_data(),
                              last->desc.weights_desc(), last_buffer);
    parallel(pool, parts.count, [&](int64_t i) {
      bool is_last = i == parts.count - 1;
      auto& entry = is_last ? *last : *first;
      execute(entry,
              {{DNNL_ARG_DIFF_DST, at(entry.desc.diff_dst_desc(),
                                      bytes(g.untyped_data()) + parts.begin(i) * s.y_bytes())},
               {DNNL_ARG_WEIGHTS, at(entry.desc.weights_desc(), is_last ? last_kernel : kernel)},
               {DNNL_ARG_DIFF_SRC, at(entry.desc.diff_src_desc(),
                                      bytes(dx->untyped_data()) + parts.begin(i) * s.x_bytes())}});
    });
  });
}

// The gradients of the parts, in float32, are added in their order.
ffi::Error ToKernelImpl(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer g,
                        ffi::Result<ffi::Buffer<ffi::F32>> dw, Ints strides, Ints padding,
                        int64_t groups) {
  return guarded([&] {
    Shape s = shape_of(x.dimensions(), dw->dimensions(), g.dimensions(), strides, padding, groups,
                       g.element_type());
    Parts parts(s.x[0], kGradientParts);
    auto first = to_kernel(s.of(parts.length(0)));
    auto last = to_kernel(s.of(parts.length(parts.count - 1)));
    auto plain = memory::desc(s.w, Type::f32, s.kernel_tag());
    size_t size = plain.get_size();
    size_t own = std::max(first->desc.diff_weights_desc().get_size(),
                          last->desc.diff_weights_desc().get_size());
    size_t each = (own + size + 127) / 64 * 64;
    Buffer buffer;
    char* gradients = bytes(buffer.get(each * parts.count));
    size_t offset = (own + 63) / 64 * 64;
    parallel(pool, parts.count, [&](int64_t i) {
      auto& entry = i == parts.count - 1 ? *last : *first;
      char* mine = gradients + i * each;
      execute(entry,
              {{DNNL_ARG_SRC, at(entry.desc.src_desc(),
                                 bytes(x.untyped_data()) + parts.begin(i) * s.x_bytes())},
               {DNNL_ARG_DIFF_DST, at(entry.desc.diff_dst_desc(),
                                      bytes(g.untyped_data()) + parts.begin(i) * s.y_bytes())},
               {DNNL_ARG_DIFF_WEIGHTS, at(entry.desc.diff_weights_desc(), mine)}});
      reorder(entry.desc.diff_weights_desc(), mine, plain, mine + offset);
    });
    float* sum = dw->typed_data();
    std::memcpy(sum, gradients + offset, size);
    for (int64_t i = 1; i < parts.count; i++) {
      auto* part = reinterpret_cast<float*>(gradients + i * each + offset);
      for (size_t j = 0; j < size / sizeof(float); j++) sum[j] += part[j];
    }
  });
}

}  // namespace

#define DISTILL_CONVOLUTION \
  .Attr<Ints>("strides").Attr<Ints>("padding").Attr<int64_t>("groups")

XLA_FFI_DEFINE_HANDLER_SYMBOL(distill_convolution, ForwardImpl,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>() DISTILL_CONVOLUTION.Attr<bool>("relu"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(distill_convolution_to_input, ToInputImpl,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>() DISTILL_CONVOLUTION);
XLA_FFI_DEFINE_HANDLER_SYMBOL(distill_convolution_to_kernel, ToKernelImpl,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::Buffer<ffi::F32>>() DISTILL_CONVOLUTION);

}  // namespace distill
