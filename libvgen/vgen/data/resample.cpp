#include "vgen/data/resample.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>

#include "vgen/core/error.h"
#include "vgen/data/detail/resample_kernels.h"

namespace vgen::data {
namespace {

double support_of(Filter filter) {
  switch (filter) {
    case Filter::kBox:
      return 0.5;
    case Filter::kBicubic:
      return 2.0;
    case Filter::kLanczos:
      break;
  }
  return 3.0;
}

double sinc(double x) {
  if (x == 0.0) return 1.0;
  x *= std::numbers::pi;
  return std::sin(x) / x;
}

double kernel(Filter filter, double x) {
  constexpr double a = -0.5;
  switch (filter) {
    case Filter::kBox:
      return x > -0.5 && x <= 0.5 ? 1.0 : 0.0;
    case Filter::kBicubic:
      x = std::abs(x);
      if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
      if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
      return 0.0;
    case Filter::kLanczos:
      break;
  }
  return x >= -3.0 && x < 3.0 ? sinc(x) * sinc(x / 3) : 0.0;
}

/// The taps of a range of outputs along one axis.
struct Taps {
  std::vector<int64_t> first;    ///< first input of each output
  std::vector<int64_t> count;    ///< inputs of each output
  std::vector<int32_t> weights;  ///< `stride` per output
  int64_t stride = 0;

  int64_t begin() const { return *std::min_element(first.begin(), first.end()); }
  int64_t end() const {
    int64_t last = 0;
    for (size_t i = 0; i < first.size(); ++i) last = std::max(last, first[i] + count[i]);
    return last;
  }
};

/// Outputs [out_begin, out_begin + out_count) of an axis of in_size that becomes out_size. The
/// order of the floating-point operations is Pillow's: the weights must come out to the last bit.
Taps make_taps(Filter filter, int64_t in_size, int64_t out_size, int64_t out_begin,
               int64_t out_count) {
  const double scale = static_cast<double>(in_size) / static_cast<double>(out_size);
  const double filter_scale = std::max(scale, 1.0);
  const double support = support_of(filter) * filter_scale;
  const double inverse = 1.0 / filter_scale;
  Taps taps;
  taps.stride = static_cast<int64_t>(std::ceil(support)) * 2 + 1;
  taps.weights.assign(static_cast<size_t>(out_count * taps.stride), 0);
  std::vector<double> raw(static_cast<size_t>(taps.stride));
  for (int64_t i = 0; i < out_count; ++i) {
    const double center = (static_cast<double>(out_begin + i) + 0.5) * scale;
    const int64_t low = std::max<int64_t>(0, static_cast<int64_t>(center - support + 0.5));
    const int64_t high = std::min(in_size, static_cast<int64_t>(center + support + 0.5));
    double sum = 0.0;
    for (int64_t j = low; j < high; ++j) {
      raw[j - low] = kernel(filter, (static_cast<double>(j) - center + 0.5) * inverse);
      sum += raw[j - low];
    }
    int32_t* weights = taps.weights.data() + i * taps.stride;
    for (int64_t j = 0; j < high - low; ++j) {
      const double weight = (sum != 0.0 ? raw[j] / sum : raw[j]) * (1 << detail::kWeightBits);
      weights[j] = static_cast<int32_t>(weight < 0 ? weight - 0.5 : weight + 0.5);
    }
    taps.first.push_back(low);
    taps.count.push_back(high - low);
  }
  return taps;
}

/// Rows [row_begin, row_end) of `image`, columns [x, x + width) of the widened result.
Image resize_columns(const Image& image, const Taps& taps, int64_t row_begin, int64_t row_end) {
  const auto& kernels = detail::resample_kernels();
  const int64_t width = static_cast<int64_t>(taps.first.size());
  Image out{.width = width, .height = row_end - row_begin, .rgb = {}};
  out.rgb.resize(static_cast<size_t>(out.width * out.height * 3));
  const int64_t in_begin = taps.begin(), in_width = taps.end() - in_begin;
  // Sixteen rows at a time are turned on their side, so that the sums run along rows.
  Pixels in_columns(static_cast<size_t>(in_width * 3 * 16));
  Pixels out_columns(static_cast<size_t>(width * 3 * 16));
  Pixels spare(static_cast<size_t>(width * 3));  // takes rows past the last
  for (int64_t y = 0; y < out.height; y += 16) {
    const uint8_t* in_rows[16];
    uint8_t* out_rows[16];
    for (int64_t r = 0; r < 16; ++r) {
      const bool is_inside = y + r < out.height;
      in_rows[r] = image.row(row_begin + (is_inside ? y + r : y)) + in_begin * 3;
      out_rows[r] = is_inside ? out.row(y + r) : spare.data();
    }
    kernels.transpose_in(in_rows, in_width * 3, in_columns.data());
    for (int64_t x = 0; x < width; ++x) {
      kernels.weighted_sum(in_columns.data() + (taps.first[x] - in_begin) * 48, 48,
                           taps.weights.data() + x * taps.stride, taps.count[x],
                           out_columns.data() + x * 48, 48);
    }
    kernels.transpose_out(out_columns.data(), width * 3, out_rows);
  }
  return out;
}

/// `image` holds the input rows from `row_begin` on.
Image resize_rows(const Image& image, const Taps& taps, int64_t row_begin) {
  const auto& kernels = detail::resample_kernels();
  Image out{.width = image.width, .height = static_cast<int64_t>(taps.first.size()), .rgb = {}};
  out.rgb.resize(static_cast<size_t>(out.width * out.height * 3));
  const int64_t stride = image.width * 3;
  for (int64_t y = 0; y < out.height; ++y) {
    kernels.weighted_sum(image.row(taps.first[y] - row_begin), stride,
                         taps.weights.data() + y * taps.stride, taps.count[y], out.row(y), stride);
  }
  return out;
}

}  // namespace

Image resize(const Image& image, int64_t width, int64_t height, Filter filter) {
  return resize_crop(image, width, height, filter, {0, 0, width, height});
}

Image resize_crop(const Image& image, int64_t width, int64_t height, Filter filter,
                  const Rect& rect) {
  require(image.width > 0 && image.height > 0 && width > 0 && height > 0,
          ErrorCode::kInvalidArgument, "resize from ", image.width, " x ", image.height, " to ",
          width, " x ", height, ": every side must be at least 1");
  require(rect.x >= 0 && rect.y >= 0 && rect.width > 0 && rect.height > 0 &&
              rect.x <= width - rect.width && rect.y <= height - rect.height,
          ErrorCode::kInvalidArgument, "crop of ", rect.width, " x ", rect.height, " at (", rect.x,
          ", ", rect.y, ") does not lie inside ", width, " x ", height);
  const bool resizes_rows = height != image.height;
  Taps row_taps;
  int64_t row_begin = rect.y, row_end = rect.y + rect.height;
  if (resizes_rows) {
    row_taps = make_taps(filter, image.height, height, rect.y, rect.height);
    row_begin = row_taps.begin();
    row_end = row_taps.end();
  }
  Image columns;
  if (width != image.width) {
    const Taps taps = make_taps(filter, image.width, width, rect.x, rect.width);
    columns = resize_columns(image, taps, row_begin, row_end);
  } else {
    columns = crop(image, {rect.x, row_begin, rect.width, row_end - row_begin});
  }
  return resizes_rows ? resize_rows(columns, row_taps, row_begin) : columns;
}

Image crop(const Image& image, const Rect& rect) {
  require(rect.x >= 0 && rect.y >= 0 && rect.width > 0 && rect.height > 0 &&
              rect.x <= image.width - rect.width && rect.y <= image.height - rect.height,
          ErrorCode::kInvalidArgument, "crop of ", rect.width, " x ", rect.height, " at (", rect.x,
          ", ", rect.y, ") does not lie inside ", image.width, " x ", image.height);
  Image out{.width = rect.width, .height = rect.height, .rgb = {}};
  out.rgb.resize(static_cast<size_t>(rect.width * rect.height * 3));
  for (int64_t y = 0; y < rect.height; ++y) {
    std::memcpy(out.row(y), image.row(rect.y + y) + rect.x * 3,
                static_cast<size_t>(rect.width) * 3);
  }
  return out;
}

Image flip_horizontal(const Image& image) {
  Image out{.width = image.width, .height = image.height, .rgb = {}};
  out.rgb.resize(image.rgb.size());
  for (int64_t y = 0; y < image.height; ++y) {
    const uint8_t* from = image.row(y) + (image.width - 1) * 3;
    uint8_t* to = out.row(y);
    for (int64_t x = 0; x < image.width; ++x, from -= 3, to += 3) {
      to[0] = from[0];
      to[1] = from[1];
      to[2] = from[2];
    }
  }
  return out;
}

}  // namespace vgen::data
