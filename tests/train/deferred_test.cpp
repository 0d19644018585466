// Models that are built as parts: the values of ordinary construction, and the memory of a part.

#include <torch/torch.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <mutex>
#include <optional>

#include "support/count_memory.h"
#include "support/ranks.h"
#include "support/support.h"
#include "vgen/checkpoint/named_tensors.h"
#include "vgen/dist/sharded.h"
#include "vgen/gpt/transformer.h"
#include "vgen/tensor/deferred_init.h"
#include "vgen/var/transformer.h"

namespace vgen {
namespace {

struct Built {
  int64_t peak_bytes = 0;  ///< from before the model until it is sharded
  std::vector<torch::Tensor> weights;
};

template <class Model>
int64_t bytes_of(const Model& module) {
  int64_t bytes = 0;
  for (const torch::Tensor& weight : module.parameters()) {
    bytes += static_cast<int64_t>(weight.nbytes());
  }
  return bytes;
}

template <class Model>
std::vector<torch::Tensor> weights_of(const Model& model) {
  std::vector<torch::Tensor> weights;
  for (const torch::Tensor& weight : model->parameters()) {
    weights.push_back(weight.detach().clone());
  }
  return weights;
}

bool are_equal(const std::vector<torch::Tensor>& a, const std::vector<torch::Tensor>& b) {
  return std::ranges::equal(
      a, b, [](const torch::Tensor& x, const torch::Tensor& y) { return torch::equal(x, y); });
}

template <class Model, class Config>
Model seeded(const Config& config) {
  static std::mutex one_at_a_time;  // LibTorch's generator is one for all threads
  const std::lock_guard lock(one_at_a_time);
  torch::manual_seed(7);
  return Model(config);
}

template <class Model>
dist::PhaseModel phase_of(const Model& model) {
  dist::PhaseModel phase;
  for (const auto& item : model->named_parameters()) {
    phase.names.push_back(item.key());
    phase.parameters.push_back(item.value());
  }
  phase.blocks = model->blocks();
  return phase;
}

/// One rank builds the model and has its part of it; `file`: weights to begin with.
template <class Model, class Config>
Built build(const Config& config, std::unique_ptr<dist::Group> group, bool is_deferred,
            const std::string& file) {
  dist::ParallelConfig parallel;
  parallel.strategy = "fsdp";
  const auto strategy = dist::make_sharded(parallel, std::move(group), torch::kFloat32, 1);
  Model model{nullptr};
  Built built;
  {
    const test::ThreadMemoryCount count;
    std::optional<DeferredInit> deferred;
    if (is_deferred) deferred.emplace();
    model = seeded<Model>(config);
    if (!file.empty()) checkpoint::load_into(*model, io::load_state_dict(file));
    strategy->attach({phase_of(model)}, model->buffers());
    built.peak_bytes = count.peak();
  }
  {
    const auto whole = strategy->whole();
    built.weights = weights_of(model);
  }
  strategy->group().barrier();
  return built;
}

template <class Model, class Config>
void check(const Config& config) {
  const Model ordinary = seeded<Model>(config);
  const int64_t whole = bytes_of(*ordinary), block = bytes_of(*ordinary->blocks()[0]);
  const auto expected = weights_of(ordinary);
  const test::TempDir dir;
  const std::string file = dir / "model.safetensors";
  {
    Model other(config);
    const torch::NoGradGuard no_grad;
    for (torch::Tensor& weight : other->parameters()) weight.add_(1);
    io::write_safetensors(file, checkpoint::as_arrays(checkpoint::named_state(*other)));
  }
  const auto build_all = [&](int64_t ranks, bool is_deferred, const std::string& init_from) {
    const test::MemoryCount counted;
    std::vector<Built> all(static_cast<size_t>(ranks));
    test::run_ranks(ranks, [&](std::unique_ptr<dist::Group> group) {
      const auto rank = static_cast<size_t>(group->rank());
      all[rank] = build<Model>(config, std::move(group), is_deferred, init_from);
    });
    return all;
  };
  for (const int64_t ranks : {2, 3}) {
    CAPTURE(ranks, whole, block);
    // Norms, biases, tables, a state of the generator for each weight; and the block before, which
    // Gloo's thread may not have let go of yet.
    const int64_t small = block / 8;
    for (const Built& built : build_all(ranks, true, "")) {
      CHECK(built.peak_bytes <= whole / ranks + 2 * block + small);
      CHECK(are_equal(built.weights, expected));
    }
  }
  CHECK(build_all(2, false, "")[0].peak_bytes > whole);
  Model other = seeded<Model>(config);
  checkpoint::load_into(*other, io::load_state_dict(file));
  const auto loaded = weights_of(other);
  CHECK_FALSE(are_equal(loaded, expected));
  for (const Built& built : build_all(2, true, file)) {
    CHECK(built.peak_bytes <= whole / 2 + 2 * block + block / 8);
    CHECK(are_equal(built.weights, loaded));
  }
}

TEST_CASE("deferred: a GPT takes the memory of a part and a block", "[train][dist]") {
  gpt::GptConfig config;
  config.vocab_size = 32;
  config.block_size = 16;
  config.n_layer = 6;
  config.n_head = 4;
  config.dim = 256;
  config.multiple_of = 32;
  config.num_classes = 5;
  check<gpt::Transformer>(config);
}

TEST_CASE("deferred: VAR takes the memory of a part and a block", "[train][dist]") {
  var::VarConfig config;
  config.depth = 6;
  config.dim = 256;
  config.n_head = 4;
  config.patch_nums = {1, 2, 3};
  config.num_classes = 5;
  config.codebook_size = 32;
  config.z_channels = 8;
  config.shared_adaln = GENERATE(false, true);
  check<var::VarTransformer>(config);
}

TEST_CASE("deferred: without it weights are drawn at once", "[train]") {
  const auto weight = torch::zeros({4, 5}).requires_grad_();
  const auto fill = [](const torch::Tensor& values, const auto& random) {
    values.normal_(0, 1, random);
  };
  torch::manual_seed(3);
  const auto expected = torch::randn({4, 5}) * 2;
  torch::manual_seed(3);
  defer_weight(weight);
  draw_weight(weight, fill);
  change_weight(weight, [](const torch::Tensor& values) { values.mul_(2); });
  CHECK(torch::equal(weight, expected));
  const auto copy = torch::zeros({4, 5});
  copy_weight(weight, copy);
  CHECK(torch::equal(copy, expected));

  torch::manual_seed(3);
  const DeferredInit deferred;
  defer_weight(weight);
  draw_weight(weight, fill);
  change_weight(weight, [](const torch::Tensor& values) { values.mul_(2); });
  const auto next = torch::rand({1});  // as if it had been drawn
  CHECK(weight.storage().nbytes() == 0);
  copy.zero_();
  copy_weight(weight, copy);
  CHECK(torch::equal(copy, expected));
  torch::manual_seed(3);
  torch::randn({4, 5});
  CHECK(torch::equal(torch::rand({1}), next));
}

}  // namespace
}  // namespace vgen
