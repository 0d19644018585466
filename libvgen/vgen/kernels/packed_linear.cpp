#include "vgen/kernels/packed_linear.h"

#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "vgen/core/error.h"

namespace vgen::kernels {

namespace {

constexpr int64_t kBlock = kLinearBlock;

void check_weight(const at::Tensor& weight) {
  require(weight.dim() == 2 && weight.device().is_cpu() && weight.size(1) % 2 == 0,
          ErrorCode::kInvalidArgument,
          "packed linear: expected a matrix on the CPU with an even number of columns");
}

template <class T>
void read_row(const T* from, float* to, int64_t size) {
  for (int64_t i = 0; i < size; ++i) to[i] = static_cast<float>(from[i]);
}

// Row `row` of a contiguous matrix as float32.
void read_row(const at::Tensor& weight, int64_t row, float* to) {
  const int64_t size = weight.size(1);
  switch (weight.scalar_type()) {
    case at::kFloat:
      std::memcpy(to, weight.const_data_ptr<float>() + row * size, size * sizeof(float));
      return;
    case at::kBFloat16:
      return read_row(weight.const_data_ptr<at::BFloat16>() + row * size, to, size);
    case at::kHalf:
      return read_row(weight.const_data_ptr<at::Half>() + row * size, to, size);
    default:
      throw_error(ErrorCode::kInvalidArgument, "packed linear: weights are ",
                  c10::toString(weight.scalar_type()), ", expected float32, bfloat16 or float16");
  }
}

/// Floats from one row of a block to the next while it is packed: where K is a power of two, rows
/// without a gap would displace each other from the first cache.
int64_t row_stride(int64_t in_features) { return in_features + 16; }

using Words [[gnu::vector_size(16)]] = uint32_t;  // of four bytes: a float, or two bfloat16
constexpr int64_t kWordBytes = 4;

Words load_words(const std::byte* from) {
  Words value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}
void store_words(Words value, std::byte* to) { std::memcpy(to, &value, sizeof(value)); }

// (kBlock rows of num_words, row_bytes apart) to (num_words, kBlock). Whole cache lines of a row at
// a time: lines of rows that are a power of two apart displace each other.
void transpose_block(const std::byte* from, int64_t row_bytes, int64_t num_words, std::byte* to) {
  constexpr int64_t kLineWords = 16, kOutBytes = kBlock * kWordBytes;
  for (int64_t first = 0; first < num_words; first += kLineWords) {
    const int64_t end = std::min(first + kLineWords, num_words);
    for (int64_t n = 0; n < kBlock; n += 4) {
      const std::byte* row = from + n * row_bytes + first * kWordBytes;
      std::byte* out = to + first * kOutBytes + n * kWordBytes;
      int64_t k = first;
      for (; k + 4 <= end; k += 4) {
        const Words a = load_words(row), b = load_words(row + row_bytes);
        const Words c = load_words(row + 2 * row_bytes), d = load_words(row + 3 * row_bytes);
        const Words ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
        const Words ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
        const Words cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5);
        const Words cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
        store_words(__builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5), out);
        store_words(__builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7), out + kOutBytes);
        store_words(__builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5), out + 2 * kOutBytes);
        store_words(__builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7), out + 3 * kOutBytes);
        row += 4 * kWordBytes;
        out += 4 * kOutBytes;
      }
      for (; k < end; ++k, row += kWordBytes, out += kOutBytes) {
        for (int64_t i = 0; i < 4; ++i) {
          std::memcpy(out + i * kWordBytes, row + i * row_bytes, kWordBytes);
        }
      }
    }
  }
}

// rows_BK, kBlock rows of K, to the block's layout.
void store_block(const float* rows_BK, int64_t in_features, Storage storage, std::byte* to) {
  const int64_t stride = row_stride(in_features);
  if (storage == Storage::kFloat32) {
    transpose_block(reinterpret_cast<const std::byte*>(rows_BK), stride * kWordBytes, in_features,
                    to);
    return;
  }
  std::vector<at::BFloat16> narrow_BK(static_cast<size_t>(kBlock * stride));
  for (int64_t i = 0; i < kBlock * stride; ++i) narrow_BK[i] = at::BFloat16(rows_BK[i]);
  transpose_block(reinterpret_cast<const std::byte*>(narrow_BK.data()), stride * 2, in_features / 2,
                  to);
}

void store_int8_block(const float* rows_BK, int64_t in_features, std::byte* to, float* scale) {
  auto* out = reinterpret_cast<int8_t*>(to);
  for (int64_t n = 0; n < kBlock; ++n) {
    const float* row = rows_BK + n * row_stride(in_features);
    float largest = 0;
    for (int64_t k = 0; k < in_features; ++k) largest = std::max(largest, std::abs(row[k]));
    scale[n] = largest / 127;
    const float inverse = largest > 0 ? 127 / largest : 0;
    for (int64_t k = 0; k < in_features; ++k) {
      out[k * kBlock + n] = static_cast<int8_t>(std::lrintf(row[k] * inverse));
    }
  }
}

int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

int64_t item_bytes(Storage storage) {
  return storage == Storage::kFloat32 ? 4 : storage == Storage::kBFloat16 ? 2 : 1;
}

}  // namespace

float* LinearScratch::reserve(int64_t size) {
  const size_t bytes = static_cast<size_t>(size) * sizeof(float);
  if (buffer_.size() < bytes) {
    buffer_ = {};  // never the old and the new one together
    buffer_ = AlignedBuffer(bytes);
  }
  return reinterpret_cast<float*>(buffer_.data());
}

PackedLinear::PackedLinear(const std::vector<at::Tensor>& weights_NK, Storage storage, CpuIsa isa,
                           Inputs inputs)
    : storage_(storage), inputs_(inputs), kernels_(&decode_kernels(isa)) {
  std::vector<const at::Tensor*> source;
  std::vector<int64_t> index;
  for (const at::Tensor& weight : weights_NK) {
    check_weight(weight);
    for (int64_t row = 0; row < weight.size(0); ++row) {
      source.push_back(&weight);
      index.push_back(row);
    }
  }
  out_features_ = static_cast<int64_t>(index.size());
  pack(source, index);
}

PackedLinear PackedLinear::swiglu(const at::Tensor& w1_NK, const at::Tensor& w3_NK, Storage storage,
                                  CpuIsa isa) {
  check_weight(w1_NK);
  check_weight(w3_NK);
  require(w1_NK.sizes() == w3_NK.sizes(), ErrorCode::kInvalidArgument,
          "packed linear: w1 and w3 have different shapes");
  PackedLinear linear;
  linear.storage_ = storage;
  linear.kernels_ = &decode_kernels(isa);
  linear.is_swiglu_ = true;
  linear.out_features_ = w1_NK.size(0);
  std::vector<const at::Tensor*> source;
  std::vector<int64_t> index;
  constexpr int64_t kHalf = kBlock / 2;
  for (int64_t first = 0; first < w1_NK.size(0); first += kHalf) {
    for (const at::Tensor* weight : {&w1_NK, &w3_NK}) {
      for (int64_t i = 0; i < kHalf; ++i) {
        source.push_back(first + i < w1_NK.size(0) ? weight : nullptr);
        index.push_back(first + i);
      }
    }
  }
  linear.pack(source, index);
  return linear;
}

// Row n of the packed weight is row row_index[n] of *row_source[n], zeros where that is null.
void PackedLinear::pack(const std::vector<const at::Tensor*>& row_source,
                        const std::vector<int64_t>& row_index) {
  const auto num_rows = static_cast<int64_t>(row_index.size());
  require(num_rows > 0, ErrorCode::kInvalidArgument, "packed linear: no rows");
  in_features_ = row_source.front()->size(1);
  for (const at::Tensor* source : row_source) {
    require(source == nullptr || (source->size(1) == in_features_ && source->is_contiguous()),
            ErrorCode::kInvalidArgument, "packed linear: weights of different widths");
  }
  num_blocks_ = (num_rows + kBlock - 1) / kBlock;
  packed_inputs_ = has_tiles() ? round_up(in_features_, kTileInputs) : in_features_;
  const int64_t block_bytes = kBlock * packed_inputs_ * item_bytes(storage_);
  buffer_ = AlignedBuffer(static_cast<size_t>(num_blocks_ * block_bytes));
  if (storage_ == Storage::kInt8) scale_.resize(num_blocks_ * kBlock);
  at::parallel_for(0, num_blocks_, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> rows_BK(kBlock * row_stride(in_features_));
    for (int64_t block = begin; block < end; ++block) {
      for (int64_t i = 0; i < kBlock; ++i) {
        const int64_t row = block * kBlock + i;
        float* to = rows_BK.data() + i * row_stride(in_features_);
        if (row < num_rows && row_source[row] != nullptr) {
          read_row(*row_source[row], row_index[row], to);
        } else {
          std::fill_n(to, in_features_, 0.0f);
        }
      }
      std::byte* out = buffer_.data() + block * block_bytes;
      if (storage_ == Storage::kInt8) {
        store_int8_block(rows_BK.data(), in_features_, out, scale_.data() + block * kBlock);
      } else {
        store_block(rows_BK.data(), in_features_, storage_, out);
      }
    }
  });
}

// x cut along its columns: (chunks, M, kInputChunk), what lies behind the last column unset.
const float* PackedLinear::chunked(const float* x_MK, int64_t num_rows,
                                   LinearScratch& scratch) const {
  const int64_t num_chunks = (in_features_ + kInputChunk - 1) / kInputChunk;
  float* const to = scratch.reserve(num_chunks * num_rows * kInputChunk);
  at::parallel_for(0, num_chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t first = chunk * kInputChunk;
      const int64_t size = std::min(kInputChunk, in_features_ - first);
      for (int64_t row = 0; row < num_rows; ++row) {
        std::memcpy(to + (chunk * num_rows + row) * kInputChunk, x_MK + row * in_features_ + first,
                    static_cast<size_t>(size) * sizeof(float));
      }
    }
  });
  return to;
}

// x in tiles, see decode_kernels.h.
const std::byte* PackedLinear::tiled(const float* x_MK, int64_t num_rows, int64_t num_parts,
                                     LinearScratch& scratch) const {
  const int64_t num_row_tiles = round_up(num_rows, kTileRows) / kTileRows;
  const int64_t bytes = num_row_tiles * (packed_inputs_ / kTileInputs) * num_parts * kTileBytes;
  auto* const to =
      reinterpret_cast<std::byte*>(scratch.reserve(bytes / static_cast<int64_t>(sizeof(float))));
  at::parallel_for(0, num_row_tiles, 1, [&](int64_t begin, int64_t end) {
    kernels_->tiles->pack(x_MK, num_rows, in_features_, num_parts, begin, end, to);
  });
  return to;
}

void PackedLinear::set_bias(const at::Tensor& bias_N) {
  require(!is_swiglu_ && bias_N.is_cpu() && bias_N.scalar_type() == at::kFloat &&
              bias_N.is_contiguous() && bias_N.numel() == out_features_,
          ErrorCode::kInvalidArgument, "packed linear: a bias of ", bias_N.numel(),
          " values, expected ", out_features_, " of float32");
  bias_.assign(static_cast<size_t>(num_blocks_ * kBlock), 0.0f);
  std::copy_n(bias_N.const_data_ptr<float>(), out_features_, bias_.begin());
}

void PackedLinear::forward(const float* x_MK, int64_t num_rows, float* y_MN, LinearScratch& scratch,
                           Epilogue epilogue, const Gate& gate) const {
  LinearArgs args;
  args.weight = buffer_.data();
  args.scale = scale_.empty() ? nullptr : scale_.data();
  args.bias = bias_.empty() || epilogue == Epilogue::kAdd ? nullptr : bias_.data();
  args.gate = gate;
  args.in_features = packed_inputs_;
  args.num_outputs = out_features_;
  args.x = x_MK;
  if (has_tiles()) {
    args.x_parts = inputs_ == Inputs::kWhole ? 2 : 1;
    args.x_tiles = tiled(x_MK, num_rows, args.x_parts, scratch);
  } else if (num_rows >= kManyRows && storage_ != Storage::kInt8) {
    args.x = chunked(x_MK, num_rows, scratch);
    args.has_chunks = true;
  }
  args.num_rows = num_rows;
  args.y = y_MN;
  args.storage = storage_;
  args.epilogue = is_swiglu_ ? Epilogue::kSwiGlu : epilogue;
  const auto linear = has_tiles() ? kernels_->tiles->linear : kernels_->linear;
  at::parallel_for(0, num_blocks_, 1,
                   [&](int64_t begin, int64_t end) { linear(args, begin, end); });
}

}  // namespace vgen::kernels
