#include "vgen/kernels/winograd.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>

#include "vgen/kernels/detail/image_kernels.h"
#include "vgen/kernels/detail/tensor_elements.h"

namespace vgen::kernels {
namespace {

WinogradShape shape_of(const at::Tensor& x_BIHW, int64_t out_channels, bool is_upsampled) {
  const int64_t scale = is_upsampled ? 2 : 1;
  return {.batch = x_BIHW.size(0),
          .height = x_BIHW.size(2) * scale,
          .width = x_BIHW.size(3) * scale,
          .in_channels = x_BIHW.size(1),
          .out_channels = out_channels,
          .is_upsampled = is_upsampled};
}

int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

at::Tensor floats(int64_t count) { return at::empty({count}, at::kFloat); }

struct Weight {
  const float* values = nullptr;
  bool is_flipped = false;
};

/// Tiles in blocks, each through all three steps while its transforms are in the cache.
void conv_by_tiles(const ImageKernels& kernels, const Weight& weight, WinogradForward args) {
  const WinogradShape& shape = args.shape;
  const int64_t panels = round_up(shape.out_channels, kernels.panel) / kernels.panel;
  const at::Tensor packed = floats(kWinogradPoints * panels * shape.in_channels * kernels.panel);
  at::parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
    kernels.winograd_pack(weight.values, shape.out_channels, shape.in_channels, weight.is_flipped,
                          begin, end, packed.mutable_data_ptr<float>());
  });
  args.packed = packed.const_data_ptr<float>();
  // Blocks of equal size: the last thread has no short rest to wait for.
  const int64_t threads = std::max(1, at::get_num_threads());
  const int64_t share = (shape.tiles() + threads - 1) / threads;
  const int64_t block = std::min<int64_t>(kernels.block_tiles, round_up(share, kernels.rows));
  const int64_t blocks = (shape.tiles() + block - 1) / block;
  at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    const at::Tensor scratch = floats(kernels.winograd_scratch(shape));
    kernels.winograd_forward(args, begin * block, std::min(end * block, shape.tiles()),
                             scratch.mutable_data_ptr<float>());
  });
}

/// All tiles at once, one panel of weights after the other.
void conv_by_panels(const ImageKernels& kernels, const Weight& weight,
                    const WinogradForward& args) {
  const WinogradShape& shape = args.shape;
  constexpr int64_t kSlack = 16;  // behind each point
  const int64_t in_row = round_up(shape.in_channels, kernels.panel);
  const int64_t out_row = round_up(shape.out_channels, kernels.panel);
  const int64_t count = round_up(shape.tiles(), kernels.rows);
  const at::Tensor input = floats(kWinogradPoints * (count * in_row + kSlack));
  const at::Tensor output = floats(kWinogradPoints * (count * out_row + kSlack));
  const WinogradProducts products{.shape = shape,
                                  .weight = weight.values,
                                  .is_flipped = weight.is_flipped,
                                  .count = count,
                                  .input = input.const_data_ptr<float>(),
                                  .output = output.mutable_data_ptr<float>()};
  at::parallel_for(0, shape.tiles(), 1, [&](int64_t begin, int64_t end) {
    kernels.winograd_input(shape, args.in, 0, count, begin, end, input.mutable_data_ptr<float>());
  });
  at::parallel_for(0, out_row / kernels.panel, 1, [&](int64_t begin, int64_t end) {
    const at::Tensor scratch = floats(kernels.winograd_products_scratch(shape));
    kernels.winograd_products(products, begin, end, scratch.mutable_data_ptr<float>());
  });
  at::parallel_for(0, shape.tiles(), 1, [&](int64_t begin, int64_t end) {
    kernels.winograd_output(args, products, begin, end);
  });
}

}  // namespace

bool is_winograd_input(const at::Tensor& x_BCHW) {
  return has_elements(x_BCHW) && x_BCHW.dim() == 4 && x_BCHW.numel() > 0 &&
         x_BCHW.is_contiguous(at::MemoryFormat::ChannelsLast);
}

at::Tensor winograd_conv(const at::Tensor& x_BIHW, const at::Tensor& weight_OI33,
                         const at::Tensor& bias_O, const at::Tensor& residual_BOHW,
                         const WinogradOptions& options) {
  const ImageKernels& kernels = image_kernels(options.isa);
  const at::Tensor weight = weight_OI33.contiguous();
  TORCH_INTERNAL_ASSERT(weight.is_cpu() && weight.scalar_type() == at::kFloat &&
                        weight.dim() == 4 && weight.size(2) == 3 && weight.size(3) == 3);
  const int64_t out_channels = weight.size(options.is_flipped ? 1 : 0);
  const WinogradShape shape = shape_of(x_BIHW, out_channels, options.is_upsampled);
  TORCH_INTERNAL_ASSERT(is_winograd_input(x_BIHW) &&
                        weight.size(options.is_flipped ? 0 : 1) == shape.in_channels);
  const at::Tensor out_BOHW = at::empty({shape.batch, out_channels, shape.height, shape.width},
                                        x_BIHW.options(), at::MemoryFormat::ChannelsLast);
  if (residual_BOHW.defined()) {
    TORCH_INTERNAL_ASSERT(residual_BOHW.sizes() == out_BOHW.sizes() &&
                          residual_BOHW.scalar_type() == out_BOHW.scalar_type() &&
                          residual_BOHW.is_contiguous(at::MemoryFormat::ChannelsLast));
  }
  const at::Tensor bias = bias_O.defined() ? bias_O.contiguous() : bias_O;
  const WinogradForward args{.shape = shape,
                             .in = elements_of(x_BIHW),
                             .out = elements_of(out_BOHW),
                             .residual = elements_of(residual_BOHW),
                             .bias = bias.defined() ? bias.const_data_ptr<float>() : nullptr};
  const Weight values{weight.const_data_ptr<float>(), options.is_flipped};
  // Whichever is smaller is made whole: the transformed tiles or the transformed weights.
  if (shape.tiles() * (shape.in_channels + out_channels) <= shape.in_channels * out_channels) {
    conv_by_panels(kernels, values, args);
  } else {
    conv_by_tiles(kernels, values, args);
  }
  return out_BOHW;
}

at::Tensor winograd_weight_gradient(const at::Tensor& x_BIHW, const at::Tensor& gradient_BOHW,
                                    const WinogradOptions& options) {
  const ImageKernels& kernels = image_kernels(options.isa);
  const WinogradShape shape = shape_of(x_BIHW, gradient_BOHW.size(1), options.is_upsampled);
  TORCH_INTERNAL_ASSERT(is_winograd_input(x_BIHW) && is_winograd_input(gradient_BOHW) &&
                        x_BIHW.scalar_type() == gradient_BOHW.scalar_type());
  const int64_t in_row = round_up(shape.in_channels, kernels.panel);
  const int64_t out_row = round_up(shape.out_channels, kernels.panel);
  constexpr int64_t kBlock = 192;  // tiles whose transforms exist at once
  constexpr int64_t kSlack = 64;   // the last rows of an accumulation may read past the end
  const at::Tensor input = floats(kWinogradPoints * (kBlock * in_row + 16) + kSlack);
  const at::Tensor gradient = floats(kWinogradPoints * (kBlock * out_row + 16) + kSlack);
  const at::Tensor sum =
      at::zeros({kWinogradPoints * round_up(in_row, kernels.rows) * out_row}, at::kFloat);
  for (int64_t first = 0; first < shape.tiles(); first += kBlock) {
    const int64_t count = std::min(kBlock, shape.tiles() - first);
    at::parallel_for(first, first + count, 8, [&](int64_t begin, int64_t end) {
      kernels.winograd_input(shape, elements_of(x_BIHW), first, count, begin, end,
                             input.mutable_data_ptr<float>());
      kernels.winograd_gradient(shape, elements_of(gradient_BOHW), first, count, begin, end,
                                gradient.mutable_data_ptr<float>());
    });
    at::parallel_for(0, kWinogradPoints, 1, [&](int64_t begin, int64_t end) {
      for (int64_t f = begin; f < end; ++f) {
        kernels.winograd_accumulate(shape, f, count, input.const_data_ptr<float>(),
                                    gradient.const_data_ptr<float>(),
                                    sum.mutable_data_ptr<float>());
      }
    });
  }
  at::Tensor weight_gradient = at::empty({shape.out_channels, shape.in_channels, 3, 3}, at::kFloat);
  at::parallel_for(0, shape.in_channels, 4, [&](int64_t begin, int64_t end) {
    kernels.winograd_weight_gradient(shape, sum.const_data_ptr<float>(), begin, end,
                                     weight_gradient.mutable_data_ptr<float>());
  });
  return weight_gradient;
}

}  // namespace vgen::kernels
