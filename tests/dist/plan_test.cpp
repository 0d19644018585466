// Plans on paper against what the strategies really take and send.

#include "vgen/dist/plan.h"

#include <ATen/CPUGeneratorImpl.h>
#include <torch/torch.h>

#include <catch2/catch.hpp>
#include <cmath>

#include "support/ranks.h"
#include "support/support.h"
#include "vgen/dist/sharded.h"
#include "vgen/tensor/autocast.h"

using namespace vgen;
using Catch::Matchers::Contains;
using dist::PhaseSizes;
using dist::PlanSetup;
using dist::Transfer;

namespace {

constexpr int64_t kDim = 65;

struct LayerImpl : torch::nn::Module {
  explicit LayerImpl(int64_t hidden) {
    up = register_module("up", torch::nn::Linear(kDim, hidden));
    down = register_module("down", torch::nn::Linear(hidden, kDim));
  }
  torch::Tensor forward(const torch::Tensor& x) { return x + down(torch::tanh(up(x))); }
  torch::nn::Linear up{nullptr}, down{nullptr};
};
TORCH_MODULE(Layer);

/// Blocks of growing size between two matrices.
struct TowerImpl : torch::nn::Module {
  explicit TowerImpl(int64_t num_layers) {
    first = register_module("first", torch::nn::Linear(20, kDim));
    for (int64_t i = 0; i < num_layers; ++i) {
      layers.push_back(register_module("layer" + std::to_string(i), Layer(70 + 30 * i)));
    }
    last = register_module("last", torch::nn::Linear(kDim, 30));
  }
  torch::Tensor forward(torch::Tensor x) {
    x = first(x);
    for (const Layer& layer : layers) {
      x = run_block(*layer, {x}, [layer = layer](const std::vector<at::Tensor>& inputs) mutable {
        return layer(inputs[0]);
      });
    }
    return last(x);
  }
  dist::PhaseModel model() const {
    dist::PhaseModel model;
    for (const auto& item : named_parameters()) {
      model.names.push_back(item.key());
      model.parameters.push_back(item.value());
    }
    for (const Layer& layer : layers) model.blocks.push_back(layer.ptr());
    return model;
  }
  PhaseSizes sizes() const {
    PhaseSizes sizes;
    const auto numels = [](const torch::nn::Module& module) {
      std::vector<int64_t> numels;
      for (const auto& parameter : module.parameters()) numels.push_back(parameter.numel());
      return numels;
    };
    for (const Layer& layer : layers) sizes.blocks.push_back(numels(*layer));
    for (const auto& linear : {first, last}) {
      for (const int64_t numel : numels(*linear)) sizes.root.push_back(numel);
    }
    return sizes;
  }
  torch::nn::Linear first{nullptr}, last{nullptr};
  std::vector<Layer> layers;
};
TORCH_MODULE(Tower);

/// Of one rank.
struct Measured {
  int64_t parameters = 0, gradients = 0, gathered = 0;
  int64_t part_bytes = 0;  ///< of what its optimizer would keep averages
  double given_bytes = 0;  ///< to the collectives of a step
};

struct Case {
  std::string strategy;
  int64_t ranks = 2;
  int64_t grad_accum_steps = 1;
  int64_t prefetch_blocks = 1;
  c10::ScalarType compute_dtype = c10::kFloat;
  int64_t num_layers = 6;
};

PlanSetup setup_of(const Case& c) {
  return {.strategy = c.strategy,
          .ranks = c.ranks,
          .shard_ranks = 2,
          .param_bytes = c.compute_dtype == c10::kFloat ? 4 : 2,
          .prefetch_blocks = c.prefetch_blocks,
          .grad_accum_steps = c.grad_accum_steps};
}

int64_t nbytes(const torch::Tensor& tensor) {
  return tensor.defined() ? static_cast<int64_t>(tensor.nbytes()) : 0;
}

/// One step of gradient descent on random values.
void step(const Case& c, TowerImpl& tower, dist::Strategy& strategy, Measured& measured) {
  for (int64_t i = 0; i < c.grad_accum_steps; ++i) {
    strategy.begin();
    torch::Tensor loss;
    {
      const BlockRunnerGuard guard(strategy.runner());
      const Autocast autocast(c10::kCPU, c.compute_dtype);
      loss = tower.forward(torch::ones({4, 20})).to(torch::kFloat).square().mean();
    }
    strategy.backward(0, loss, /*sync_gradients=*/i + 1 == c.grad_accum_steps);
    strategy.end();
  }
  strategy.clip_grad_norm(0, 1.0);
  const torch::NoGradGuard no_grad;
  int64_t gradients = 0;
  for (const auto& part : strategy.parts(0)) {
    if (!part.values.grad().defined()) continue;
    gradients += nbytes(part.values.grad());
    part.values.sub_(part.values.grad(), 0.01);
    part.values.mutable_grad() = torch::Tensor();
  }
  measured.gradients = std::max(measured.gradients, gradients);
  strategy.updated(0);
}

Measured measure(const Case& c, std::unique_ptr<dist::Group> group) {
  dist::ParallelConfig config;
  config.strategy = c.strategy;
  config.shard_ranks = c.strategy == "hsdp" ? 2 : 0;
  config.prefetch_blocks = c.prefetch_blocks;
  const auto strategy = dist::make_strategy(config, std::move(group), c.compute_dtype, 2);
  Tower tower(c.num_layers);
  strategy->attach({tower->model()}, {});
  Measured measured;
  // From the second step on every step is like the one before.
  step(c, *tower, *strategy, measured);
  step(c, *tower, *strategy, measured);
  const int64_t before = strategy->traffic().bytes;
  step(c, *tower, *strategy, measured);
  measured.given_bytes = static_cast<double>(strategy->traffic().bytes - before);
  for (const auto& part : strategy->parts(0)) measured.part_bytes += nbytes(part.values);
  if (auto* sharded = dynamic_cast<dist::Sharded*>(strategy.get())) {
    const dist::MemoryUse use = sharded->memory_use();
    measured.parameters = use.parameters;
    measured.gradients = use.gradients;
    measured.gathered = use.gathered_peak;
  } else {
    for (const auto& parameter : tower->parameters()) measured.parameters += nbytes(parameter);
  }
  strategy->group().barrier();
  return measured;
}

/// The most that a rank has of each.
Measured measure(const Case& c) {
  std::vector<Measured> all(static_cast<size_t>(c.ranks));
  const auto body = [&](std::unique_ptr<dist::Group> group) {
    const auto rank = static_cast<size_t>(group->rank());
    all[rank] = measure(c, std::move(group));
  };
  if (c.ranks == 1) {
    body(dist::Group::alone());
  } else {
    test::run_ranks(c.ranks, body);
  }
  Measured most;
  for (const Measured& of_rank : all) {
    most.parameters = std::max(most.parameters, of_rank.parameters);
    most.gradients = std::max(most.gradients, of_rank.gradients);
    most.gathered = std::max(most.gathered, of_rank.gathered);
    most.part_bytes = std::max(most.part_bytes, of_rank.part_bytes);
    most.given_bytes = std::max(most.given_bytes, of_rank.given_bytes);
  }
  return most;
}

std::vector<Case> cases() {
  std::vector<Case> cases{{.strategy = "none", .ranks = 1}};
  for (const int64_t ranks : {2, 4}) {
    for (const char* strategy : {"ddp", "zero1", "fsdp", "hsdp"}) {
      for (const int64_t micro_batches : {1, 2}) {
        cases.push_back({.strategy = strategy, .ranks = ranks, .grad_accum_steps = micro_batches});
      }
    }
  }
  cases.push_back({.strategy = "fsdp", .prefetch_blocks = 0});
  cases.push_back({.strategy = "fsdp", .prefetch_blocks = 3});
  cases.push_back({.strategy = "fsdp", .num_layers = 1});
  cases.push_back({.strategy = "fsdp", .num_layers = 0});
  cases.push_back({.strategy = "fsdp", .ranks = 4, .compute_dtype = c10::kBFloat16});
  return cases;
}

/// Link of 100 GB/s within nodes of four, 10 GB/s for each rank among them.
dist::Gpu test_gpu() {
  dist::Gpu gpu = dist::find_gpu("h100");
  gpu.memory_gb_s = 1000;
  gpu.intra_gb_s = 100 / dist::kLinkEfficiency;
  gpu.inter_gb_s = 10 / dist::kLinkEfficiency;
  return gpu;
}

}  // namespace

TEST_CASE("plan: bytes of a rank as the strategies take them", "[dist]") {
  for (const Case& c : cases()) {
    CAPTURE(c.strategy, c.ranks, c.grad_accum_steps, c.prefetch_blocks, c.num_layers,
            c10::toString(c.compute_dtype));
    PhaseSizes sizes = Tower(c.num_layers)->sizes();
    sizes.is_averaged = true;
    const auto planned = dist::plan_memory({sizes}, setup_of(c));
    const Measured found = measure(c);
    CHECK(static_cast<double>(planned.parameters) == Approx(found.parameters).epsilon(0.1));
    CHECK(static_cast<double>(planned.gradients) == Approx(found.gradients).epsilon(0.1));
    CHECK(static_cast<double>(planned.gathered) == Approx(found.gathered).epsilon(0.1));
    CHECK(static_cast<double>(planned.optimizer) == Approx(2 * found.part_bytes).epsilon(0.1));
    CHECK(planned.averages * 2 == planned.optimizer);
  }
}

TEST_CASE("plan: bytes that a rank gives to collectives", "[dist]") {
  for (const Case& c : cases()) {
    if (c.strategy == "none") continue;
    CAPTURE(c.strategy, c.ranks, c.grad_accum_steps, c.prefetch_blocks, c.num_layers,
            c10::toString(c.compute_dtype));
    double planned = 0;
    for (const Transfer& transfer :
         dist::plan_transfers({Tower(c.num_layers)->sizes()}, setup_of(c))) {
      planned += transfer.given_bytes(setup_of(c));
    }
    CHECK(planned == Approx(measure(c).given_bytes).epsilon(0.1));
  }
}

TEST_CASE("plan: what does not fit in a pass is waited for", "[dist]") {
  const PhaseSizes sizes{.blocks = {{int64_t{250'000'000}}}, .root = {}};  // 1 GB
  const dist::ComputeLoad load{
      .forward_flops = 1e12, .backward_flops = 2e12, .update_bytes = 1e9, .flops_per_second = 1e14};
  PlanSetup setup{.strategy = "ddp", .ranks = 2, .bucket_bytes = 1e8};
  const auto time = [&](int64_t gpus_per_node) {
    return dist::plan_time(dist::plan_transfers({sizes}, setup), setup, load, test_gpu(),
                           gpus_per_node);
  };
  // Two ranks send each other half of it, twice: 1 GB, at 100 GB/s.
  CHECK(time(4).compute == Approx(0.03));
  CHECK(time(4).update == Approx(0.001));
  CHECK(time(4).communication == Approx(0.01));
  CHECK(time(4).exposed == Approx(0.001));  // the last bucket
  CHECK(time(4).step() == Approx(0.032));
  // At 10 GB/s 0.09 s have 0.02 s to hide in, and half of that with two micro-batches.
  CHECK(time(1).communication == Approx(0.1));
  CHECK(time(1).exposed == Approx(0.01 + 0.07));
  setup.grad_accum_steps = 2;
  CHECK(time(1).exposed == Approx(0.01 + 0.08));
  // Eight ranks on two nodes: the four network cards of a node work together.
  setup = {.strategy = "zero1", .ranks = 8};
  CHECK(time(4).communication == Approx(2 * (1.0 * 7 / 8) / 40).epsilon(1e-4));
  // hsdp: gathers stay in the node, each rank then has a quarter to sum over two nodes, alone.
  setup = {.strategy = "hsdp", .ranks = 8, .shard_ranks = 4};
  CHECK(time(4).communication ==
        Approx(2 * (1.0 * 3 / 4) / 100 + 2 * (0.25 / 2) / 10).epsilon(1e-4));
}

TEST_CASE("plan: GPUs by name", "[dist]") {
  CHECK(std::string(dist::find_gpu("H100").name) == "h100");
  CHECK(dist::find_gpu("a100-40").memory_gb == 40);
  CHECK_THAT(test::error_of([] { dist::find_gpu("h10"); }),
             Contains("unknown GPU 'h10', is it 'h100'?"));
  CHECK_THAT(test::error_of([] { dist::find_gpu("tpu-v5e-pod"); }), Contains("known are h100"));
}
