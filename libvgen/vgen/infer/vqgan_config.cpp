#include "vgen/infer/vqgan_config.h"

#include <string>

#include "vgen/core/error.h"
#include "vgen/infer/detail/shapes.h"

namespace vgen::infer {
namespace {

constexpr int64_t kMaxLevels = 8;        // validate(VqganConfig) allows no more
constexpr int64_t kMaxResBlocks = 1024;  // of one level: far above any real model

constexpr const char* kFirstConv = ".res.0.conv1.weight";

}  // namespace

tokenizer::VqganConfig infer_vqgan_config(const io::StateDict& state) {
  const detail::Shapes shapes(state, "a VQGAN tokenizer");
  tokenizer::VqganConfig config;
  config.ch = shapes.rows("encoder.conv_in.weight", {3, 3, 3});
  shapes.at(str_cat("encoder.conv_blocks.0", kFirstConv), 4);
  const int64_t levels = shapes.count("encoder.conv_blocks.", kFirstConv, kMaxLevels);

  config.encoder_ch_mult.clear();
  int64_t width = config.ch;
  for (int64_t level = 0; level < levels; ++level) {
    const std::string name = str_cat("encoder.conv_blocks.", level, kFirstConv);
    width = shapes.rows(name, {width, 3, 3});
    config.encoder_ch_mult.push_back(shapes.multiple(name, width, config.ch));
  }
  config.num_res_blocks =
      shapes.count("encoder.conv_blocks.0.res.", ".conv1.weight", kMaxResBlocks);
  config.z_channels = shapes.rows("encoder.conv_out.weight", {width, 3, 3});

  // Decoder levels are stored in execution order, deepest first; the config counts from level 0.
  width = shapes.rows("decoder.conv_in.weight", {config.z_channels, 3, 3});
  config.decoder_ch_mult.assign(static_cast<size_t>(levels), 0);
  for (int64_t block = 0; block < levels; ++block) {
    const std::string name = str_cat("decoder.conv_blocks.", block, kFirstConv);
    width = shapes.rows(name, {width, 3, 3});
    config.decoder_ch_mult[static_cast<size_t>(levels - 1 - block)] =
        shapes.multiple(name, width, config.ch);
  }

  const std::vector<int64_t>& codebook = shapes.at("quantize.embedding.weight", 2);
  config.codebook_size = codebook[0];
  config.codebook_embed_dim = shapes.rows("quant_conv.weight", {config.z_channels, 1, 1});
  require(codebook[1] == config.codebook_embed_dim, ErrorCode::kInvalidArgument, state.source,
          ": quantize.embedding.weight is ", format_shape(codebook), ", but quant_conv gives ",
          config.codebook_embed_dim, " channels");
  config.codebook_show_usage = shapes.has("quantize.codebook_used");
  try {
    validate(config);
  } catch (Error& error) {
    error.add_context(state.source);
    throw;
  }
  return config;
}

}  // namespace vgen::infer
