#include "vgen/infer/multi_scale_config.h"

#include <string>

#include "vgen/core/error.h"
#include "vgen/infer/detail/shapes.h"
#include "vgen/io/json.h"

namespace vgen::infer {

namespace {

constexpr int64_t kMaxLevels = 8, kMaxResBlocks = 1024, kMaxScales = 1024, kMaxSide = 1024;
constexpr const char* kHits = "quantize.ema_vocab_hit_SV";

std::vector<int64_t> published_scales(const io::StateDict& state, int64_t count) {
  if (count == 10) return {1, 2, 3, 4, 5, 6, 8, 10, 13, 16};
  require(count == 14, ErrorCode::kInvalidArgument, state.source, ": a tokenizer of ", count,
          " scales, which no published one has, and weights do not tell their sides; give a config "
          "with model.patch_nums");
  return {1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64};
}

int64_t shared_phi(const detail::Shapes& shapes) {
  if (shapes.has("quantize.quant_resi.qresi.weight")) return 1;
  return shapes.count("quantize.quant_resi.qresi_ls.", ".weight", kMaxScales);
}

}  // namespace

bool is_multi_scale(const io::StateDict& state) {
  return state.find(kHits) != nullptr ||
         state.find("encoder.down.0.block.0.conv1.weight") != nullptr;
}

std::vector<int64_t> recorded_scales(const io::StateDict& state) {
  const auto found = state.metadata.find(kPatchNumsKey);
  if (found == state.metadata.end()) return {};
  std::vector<int64_t> sides;
  try {
    const io::Json list = io::parse_json(found->second);
    bool is_valid = list.kind == io::Json::Kind::kArray && !list.items.empty();
    for (const io::Json& side : list.items) {
      is_valid = is_valid && side.kind == io::Json::Kind::kInt && side.integer >= 1 &&
                 side.integer <= kMaxSide;
      sides.push_back(side.integer);
    }
    require(is_valid, ErrorCode::kDataCorrupt, "'", printable(found->second),
            "', expected a list of integers from 1 to ", kMaxSide);
  } catch (Error& error) {
    error.add_context(str_cat(state.source, ": metadata '", kPatchNumsKey, "'"));
    throw;
  }
  return sides;
}

tokenizer::MultiScaleVqvaeConfig infer_multi_scale_config(const io::StateDict& state,
                                                          const std::vector<int64_t>& patch_nums) {
  const detail::Shapes shapes(state, "VAR's tokenizer");
  tokenizer::MultiScaleVqvaeConfig config;
  config.ch = shapes.rows("encoder.conv_in.weight", {3, 3, 3});
  config.ch_mult.clear();
  int64_t width = config.ch;
  const int64_t levels = shapes.count("encoder.down.", ".block.0.conv1.weight", kMaxLevels);
  for (int64_t level = 0; level < levels; ++level) {
    const std::string name = str_cat("encoder.down.", level, ".block.0.conv1.weight");
    width = shapes.rows(name, {width, 3, 3});
    config.ch_mult.push_back(shapes.multiple(name, width, config.ch));
  }
  config.num_res_blocks = shapes.count("encoder.down.0.block.", ".conv1.weight", kMaxResBlocks);
  config.z_channels = shapes.rows("encoder.conv_out.weight", {width, 3, 3});
  config.quant_conv_kernel = shapes.at("quant_conv.weight", 4)[3];
  config.codebook_size = shapes.rows("quantize.embedding.weight", {config.z_channels});
  config.share_quant_resi = shared_phi(shapes);
  config.patch_nums = patch_nums.empty() ? recorded_scales(state) : patch_nums;
  if (config.patch_nums.empty()) {
    config.patch_nums = published_scales(state, shapes.at(kHits, 2)[0]);
  }
  try {
    tokenizer::validate(config);
  } catch (Error& error) {
    error.add_context(state.source);
    throw;
  }
  return config;
}

}  // namespace vgen::infer
