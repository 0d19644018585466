// The configs of VAR that come with vgen, against the published sizes.

#include <catch2/catch.hpp>
#include <map>

#include "support/support.h"
#include "vgen/core/config.h"
#include "vgen/core/strings.h"
#include "vgen/train/var_task.h"
#include "vgen/train/var_tokenizer_task.h"

namespace vgen::train {
namespace {

TEST_CASE("var training: the configs that come with vgen", "[train]") {
  const auto read = [](const std::string& name) {
    return load_config<VarRunConfig>(test::project_path("configs/" + name), {});
  };
  struct Published {
    const char *file, *size;
    double init_adaln_gamma;
  };
  for (const auto& [file, size, init_adaln_gamma] : {Published{"d12-256", "d12", 1e-3},
                                                     {"d16-256", "d16", 1e-3},
                                                     {"d20-256", "d20", 1e-3},
                                                     {"d24-256", "d24", 1e-4},
                                                     {"d30-256", "d30", 1e-5},
                                                     {"d36s-512", "d36-s", 5e-6}}) {
    INFO(file);
    const VarRunConfig config = read(str_cat("var/", file, ".yaml"));
    validate(config);
    var::VarConfig expected = var::var_size(size);
    expected.init_adaln_gamma = init_adaln_gamma;
    CHECK(dump_config(config.model) == dump_config(expected));
    CHECK(config.images.image_size == 16 * expected.patch_nums.back());
  }
  // The tokenizers: the published model, at its size and with the scales of the larger ones.
  for (const auto& [side, patch_nums] : std::map<int64_t, std::vector<int64_t>>{
           {256, {1, 2, 3, 4, 5, 6, 8, 10, 13, 16}},
           {512, {1, 2, 3, 4, 6, 9, 13, 18, 24, 32}},
           {1024, {1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64}}}) {
    INFO(side);
    const auto config = load_config<VarTokenizerRunConfig>(
        test::project_path(str_cat("configs/var/tokenizer-", side, ".yaml")), {});
    validate(config);
    tokenizer::MultiScaleVqvaeConfig expected;
    expected.patch_nums = patch_nums;
    CHECK(dump_config(config.model) == dump_config(expected));
    CHECK(config.data.image_size == side);
  }
  // Those of the quickstart and their tokenizers.
  for (const std::string name : {"digits", "photos"}) {
    INFO(name);
    const VarRunConfig config = read("quickstart/var-" + name + ".yaml");
    validate(config);
    const auto tokenizer = load_config<VarTokenizerRunConfig>(
        test::project_path("configs/quickstart/var-tokenizer-" + name + ".yaml"), {});
    CHECK(config.model.patch_nums == tokenizer.model.patch_nums);
    CHECK(config.model.codebook_size == tokenizer.model.codebook_size);
    CHECK(config.model.z_channels == tokenizer.model.z_channels);
    CHECK(config.images.image_size == tokenizer.model.image_size());
    CHECK_FALSE(config.tokenizer.path.empty());
  }
}

}  // namespace
}  // namespace vgen::train
