// Batch normalisation of [rows, channels] maps in training, with a residual and ReLU, and its
// gradient: two passes over memory each, where XLA's take five and seven.
//
// Statistics are summed in float32 within blocks of rows and in float64 over the blocks. They are
// of x minus its first row, so that a large mean costs no precision.
#include <cmath>
#include <cstring>
#include <vector>

#include "parallel.h"

namespace distill {
namespace {

constexpr int64_t kParts = 32;   // of the rows
constexpr int64_t kBlock = 512;  // rows whose sums are of float32

// `width` neighbouring channels, as the compiler's vectors: one AVX-512 register at 16.
template <int width>
struct Vec {
  typedef float type __attribute__((vector_size(width * sizeof(float)), aligned(4)));
  static type load(const float* p) {
    type v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  static void store(float* p, type v) { std::memcpy(p, &v, sizeof v); }
};

// Calls f.operator()<width>(channel) over all channels, in vectors as wide as there are.
template <class F>
void over_channels(int64_t channels, F f) {
  int64_t c = 0;
  for (; c + 16 <= channels; c += 16) f.template operator()<16>(c);
  for (; c + 4 <= channels; c += 4) f.template operator()<4>(c);
  for (; c < channels; c++) f.template operator()<1>(c);
}

struct Map {
  int64_t rows, channels;
};

Map map_of(ffi::Span<const int64_t> d) {
  int64_t rows = 1;
  for (size_t i = 0; i + 1 < d.size(); i++) rows *= d[i];
  return {rows, d[d.size() - 1]};
}

// The sums of two values a channel over all rows, [2, channels] in float64.
//
// Arguments: `rows_of` is called as rows_of.operator()<width>(channel, begin, end, sums) and adds
// what rows begin .. end - 1 give to its two vectors.
template <class F>
std::vector<double> sums_of(ffi::ThreadPool& pool, Map map, F rows_of) {
  Parts parts(map.rows, kParts);
  std::vector<double> by_part(parts.count * 2 * map.channels, 0.0);
  parallel(pool, parts.count, [&](int64_t part) {
    double* own = by_part.data() + part * 2 * map.channels;
    int64_t end = parts.begin(part) + parts.length(part);
    for (int64_t row = parts.begin(part); row < end; row += kBlock) {
      int64_t block_end = std::min(end, row + kBlock);
      over_channels(map.channels, [&]<int width>(int64_t c) {
        typename Vec<width>::type sums[2] = {};
        rows_of.template operator()<width>(c, row, block_end, sums);
        float values[2][width];
        Vec<width>::store(values[0], sums[0]);
        Vec<width>::store(values[1], sums[1]);
        for (int k = 0; k < 2; k++)
          for (int i = 0; i < width; i++) own[k * map.channels + c + i] += values[k][i];
      });
    }
  });
  std::vector<double> total(2 * map.channels, 0.0);
  for (int64_t part = 0; part < parts.count; part++)
    for (int64_t i = 0; i < 2 * map.channels; i++)
      total[i] += by_part[part * 2 * map.channels + i];
  return total;
}

// Calls f.operator()<width>(channel, begin, end) for blocks of rows, in parallel.
template <class F>
void for_rows(ffi::ThreadPool& pool, Map map, F f) {
  Parts parts(map.rows, kParts);
  parallel(pool, parts.count, [&](int64_t part) {
    int64_t end = parts.begin(part) + parts.length(part);
    for (int64_t row = parts.begin(part); row < end; row += kBlock)
      over_channels(map.channels, [&]<int width>(int64_t c) {
        f.template operator()<width>(c, row, std::min(end, row + kBlock));
      });
  });
}

using F32 = ffi::Buffer<ffi::F32>;

// y = (x - mean) * scale / sqrt(var + epsilon) + bias, plus the residual, then ReLU.
ffi::Error NormalizeImpl(ffi::ThreadPool pool, F32 x, F32 scale, F32 bias, F32 residual,
                         ffi::Result<F32> y, ffi::Result<F32> mean, ffi::Result<F32> var,
                         float epsilon, bool relu) {
  Map map = map_of(x.dimensions());
  const int64_t channels = map.channels;
  const float *from = x.typed_data(), *first = from;
  const float* added = residual.element_count() ? residual.typed_data() : nullptr;
  float* to = y->typed_data();
  auto sums = sums_of(pool, map, [=]<int width>(int64_t c, int64_t row, int64_t end, auto* sum) {
    auto shift = Vec<width>::load(first + c);
    for (; row < end; row++) {
      auto v = Vec<width>::load(from + row * channels + c) - shift;
      sum[0] += v;
      sum[1] += v * v;
    }
  });
  std::vector<float> factor(channels);
  for (int64_t c = 0; c < channels; c++) {
    double shifted = sums[c] / map.rows;
    double variance = std::max(0.0, sums[channels + c] / map.rows - shifted * shifted);
    mean->typed_data()[c] = static_cast<float>(first[c] + shifted);
    var->typed_data()[c] = static_cast<float>(variance);
    factor[c] = scale.typed_data()[c] / std::sqrt(var->typed_data()[c] + epsilon);
  }
  const float *m = mean->typed_data(), *b = bias.typed_data(), *f = factor.data();
  for_rows(pool, map, [=]<int width>(int64_t c, int64_t row, int64_t end) {
    auto mean_c = Vec<width>::load(m + c), bias_c = Vec<width>::load(b + c);
    auto factor_c = Vec<width>::load(f + c);
    typename Vec<width>::type zero = {};
    for (; row < end; row++) {
      int64_t i = row * channels + c;
      auto v = (Vec<width>::load(from + i) - mean_c) * factor_c + bias_c;
      if (added) v += Vec<width>::load(added + i);
      if (relu) v = v < zero ? zero : v;  // NaN stays NaN
      Vec<width>::store(to + i, v);
    }
  });
  return ffi::Error::Success();
}

// The gradients of the above. With a residual, ReLU's mask is read off y and the masked gradient is
// the residual's; without one, the mask is computed from x again and y is not read.
ffi::Error GradientImpl(ffi::ThreadPool pool, F32 dy, F32 x, F32 y, F32 scale, F32 bias, F32 mean,
                        F32 var, ffi::Result<F32> dx, ffi::Result<F32> dscale,
                        ffi::Result<F32> dbias, ffi::Result<F32> dresidual, float epsilon,
                        bool relu) {
  Map map = map_of(x.dimensions());
  const int64_t channels = map.channels;
  const float *g = dy.typed_data(), *from = x.typed_data(), *m = mean.typed_data();
  const float* result = y.element_count() ? y.typed_data() : nullptr;
  float *to = dx->typed_data(), *masked = result ? dresidual->typed_data() : nullptr;
  const float *b = bias.typed_data();
  std::vector<float> factor(channels), slope(channels), offset(channels);
  for (int64_t c = 0; c < channels; c++)
    factor[c] = scale.typed_data()[c] / std::sqrt(var.typed_data()[c] + epsilon);
  const float *f = factor.data(), *p = slope.data(), *q = offset.data();

  auto sums = sums_of(pool, map, [=]<int width>(int64_t c, int64_t row, int64_t end, auto* sum) {
    auto mean_c = Vec<width>::load(m + c), bias_c = Vec<width>::load(b + c);
    auto factor_c = Vec<width>::load(f + c);
    typename Vec<width>::type zero = {};
    for (; row < end; row++) {
      int64_t i = row * channels + c;
      auto v = Vec<width>::load(g + i);
      auto centred = Vec<width>::load(from + i) - mean_c;
      if (result) {
        if (relu) v = Vec<width>::load(result + i) > zero ? v : zero;
        Vec<width>::store(masked + i, v);
      } else if (relu) {
        v = centred * factor_c + bias_c > zero ? v : zero;
      }
      sum[0] += v;
      sum[1] += v * centred;
    }
  });
  for (int64_t c = 0; c < channels; c++) {
    double inverse = 1.0 / std::sqrt(static_cast<double>(var.typed_data()[c]) + epsilon);
    dbias->typed_data()[c] = static_cast<float>(sums[c]);
    dscale->typed_data()[c] = static_cast<float>(sums[channels + c] * inverse);
    slope[c] = static_cast<float>(-factor[c] * inverse * inverse * sums[channels + c] / map.rows);
    offset[c] = static_cast<float>(-factor[c] * sums[c] / map.rows);
  }
  for_rows(pool, map, [=]<int width>(int64_t c, int64_t row, int64_t end) {
    auto mean_c = Vec<width>::load(m + c), bias_c = Vec<width>::load(b + c);
    auto factor_c = Vec<width>::load(f + c), slope_c = Vec<width>::load(p + c);
    auto offset_c = Vec<width>::load(q + c);
    typename Vec<width>::type zero = {};
    for (; row < end; row++) {
      int64_t i = row * channels + c;
      auto v = Vec<width>::load((masked ? masked : g) + i);
      auto centred = Vec<width>::load(from + i) - mean_c;
      if (relu && !masked) v = centred * factor_c + bias_c > zero ? v : zero;
      Vec<width>::store(to + i, v * factor_c + (centred * slope_c + offset_c));
    }
  });
  return ffi::Error::Success();
}

}  // namespace

#define DISTILL_NORM .Attr<float>("epsilon").Attr<bool>("relu")

XLA_FFI_DEFINE_HANDLER_SYMBOL(distill_batch_norm, NormalizeImpl,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<F32>()
                                  .Arg<F32>()
                                  .Arg<F32>()
                                  .Arg<F32>()
                                  .Ret<F32>()
                                  .Ret<F32>()
                                  .Ret<F32>() DISTILL_NORM);
XLA_FFI_DEFINE_HANDLER_SYMBOL(distill_batch_norm_gradient, GradientImpl,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<F32>()
                                  .Arg<F32>()
                                  .Arg<F32>()
                                  .Arg<F32>()
                                  .Arg<F32>()
                                  .Arg<F32>()
                                  .Arg<F32>()
                                  .Ret<F32>()
                                  .Ret<F32>()
                                  .Ret<F32>()
                                  .Ret<F32>() DISTILL_NORM);

}  // namespace distill
