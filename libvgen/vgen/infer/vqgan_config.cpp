#include "vgen/infer/vqgan_config.h"

#include <string>
#include <unordered_map>

#include "vgen/core/error.h"

namespace vgen::infer {
namespace {

using Shape = std::vector<int64_t>;

constexpr int64_t kMaxLevels = 8;        // validate(VqganConfig) allows no more
constexpr int64_t kMaxResBlocks = 1024;  // of one level: far above any real model

class Shapes {
 public:
  explicit Shapes(const io::StateDict& state) : source_(state.source) {
    for (const io::NamedArray& item : state.tensors) shapes_.emplace(item.name, &item.array.shape);
    first_ = state.tensors.empty() ? "" : state.tensors.front().name;
  }

  bool has(const std::string& name) const { return shapes_.contains(name); }

  const Shape& at(const std::string& name, size_t rank) const {
    const auto found = shapes_.find(name);
    require(found != shapes_.end(), ErrorCode::kInvalidArgument, source_,
            ": not the weights of a VQGAN tokenizer: no tensor '", name, "' among ", shapes_.size(),
            ", the first is '", printable(first_), "'");
    const Shape& shape = *found->second;
    bool is_valid = shape.size() == rank;
    for (const int64_t size : shape) is_valid = is_valid && size > 0;
    require(is_valid, ErrorCode::kInvalidArgument, source_, ": ", name, " is ", format_shape(shape),
            ", expected ", rank, " sizes above 0");
    return shape;
  }

  /// The first size of `name`, whose other sizes must be `rest`.
  int64_t rows(const std::string& name, const Shape& rest) const {
    const Shape& shape = at(name, rest.size() + 1);
    require(std::equal(rest.begin(), rest.end(), shape.begin() + 1), ErrorCode::kInvalidArgument,
            source_, ": ", name, " is ", format_shape(shape), ", expected the sizes ",
            format_shape(rest), " behind the first");
    return shape[0];
  }

  /// How many of "<prefix>0<suffix>", "<prefix>1<suffix>", ... there are without a gap.
  int64_t count(const std::string& prefix, const std::string& suffix, int64_t limit) const {
    int64_t number = 0;
    while (number < limit && has(str_cat(prefix, number, suffix))) ++number;
    return number;
  }

  /// `width` as a multiple of the base width.
  int64_t multiple(const std::string& name, int64_t width, int64_t ch) const {
    require(width % ch == 0, ErrorCode::kInvalidArgument, source_, ": ", name, " has ", width,
            " output channels, expected a multiple of the base width ", ch);
    return width / ch;
  }

 private:
  std::string source_, first_;
  std::unordered_map<std::string, const Shape*> shapes_;
};

constexpr const char* kFirstConv = ".res.0.conv1.weight";

}  // namespace

tokenizer::VqganConfig infer_vqgan_config(const io::StateDict& state) {
  const Shapes shapes(state);
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

  const Shape& codebook = shapes.at("quantize.embedding.weight", 2);
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
