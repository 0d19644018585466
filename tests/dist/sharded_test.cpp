#include "vgen/dist/sharded.h"

#include <ATen/CPUGeneratorImpl.h>
#include <torch/torch.h>

#include <catch2/catch.hpp>
#include <cmath>
#include <set>

#include "dist/tower.h"
#include "support/ranks.h"
#include "support/support.h"
#include "support/torch_support.h"
#include "vgen/core/error.h"
#include "vgen/tensor/autocast.h"
#include "vgen/tensor/device.h"

using namespace vgen;
using dist::ParallelConfig;
using dist::PhaseModel;
using dist::Strategy;
using test::parallel;
using test::Shape;
using test::Tower;

namespace {

struct Setup {
  ParallelConfig parallel = {};
  int64_t ranks = 1;
  int64_t grad_accum_steps = 1;
  double max_norm = 0.5;
  int64_t steps = 20;
  c10::ScalarType compute_dtype = c10::kFloat;
  Shape shape = {};
  c10::DeviceType device_type = c10::kCPU;
  std::vector<std::string> hosts = {};  ///< of each rank; none: this one

  c10::Device device(int64_t rank) const {
    if (device_type == c10::kCPU) return c10::kCPU;
    return {device_type, static_cast<c10::DeviceIndex>(rank)};
  }
};

/// Bytes of memory that tensors of a rank hold after an update, before the gradients are dropped.
struct KeptBytes {
  int64_t weights = 0;  ///< of the parts and of the model
  int64_t gradients = 0;
  int64_t averages = 0;  ///< the optimizer's

  int64_t sum() const { return weights + gradients + averages; }
};

struct Run {
  std::vector<double> losses, norms;
  std::vector<torch::Tensor> parameters;  ///< whole, after the last step
  dist::MemoryUse memory;
  KeptBytes kept;  ///< of the phase that was updated last
};

/// Each memory counts once, however many tensors look at it.
int64_t storage_bytes(const std::vector<torch::Tensor>& tensors) {
  std::set<const c10::StorageImpl*> seen;
  int64_t bytes = 0;
  for (const torch::Tensor& tensor : tensors) {
    if (!tensor.defined()) continue;
    const c10::StorageImpl* storage = tensor.storage().unsafeGetStorageImpl();
    if (seen.insert(storage).second) bytes += static_cast<int64_t>(storage->nbytes());
  }
  return bytes;
}

/// Sharded or the class for one process.
std::unique_ptr<Strategy> strategy_of(const Setup& setup, std::unique_ptr<dist::Group> group) {
  const std::string& name = setup.parallel.strategy;
  const bool is_sharded = name != "none" && name != "ddp";
  if (is_sharded && setup.ranks == 1) {  // for a run there is no use in that
    return dist::make_sharded(setup.parallel, std::move(group), setup.compute_dtype, 1);
  }
  const auto rank = static_cast<size_t>(group->rank());
  return dist::make_strategy(setup.parallel, std::move(group), setup.compute_dtype,
                             /*ranks_per_host=*/2,
                             setup.hosts.empty() ? dist::host_id() : setup.hosts[rank]);
}

std::vector<torch::Tensor> values_of(const std::vector<dist::ParameterPart>& parts) {
  std::vector<torch::Tensor> values;
  for (const auto& part : parts) values.push_back(part.values);
  return values;
}

/// Samples of a micro-batch that are this rank's; all ranks together have 12.
torch::Tensor own_rows(const torch::Tensor& rows, const Strategy& strategy, int64_t rank) {
  const int64_t count = rows.size(0) / strategy.world_size();
  return rows.narrow(0, rank * count, count);
}

/// One optimizer on the parts of a phase.
class PhaseTrainer {
 public:
  PhaseTrainer(Strategy& strategy, const std::vector<PhaseModel>& phases, size_t phase)
      : strategy_(strategy),
        parameters_(phases[phase].parameters),
        phase_(phase),
        optimizer_(values_of(strategy.parts(phase)),
                   torch::optim::AdamWOptions(0.01).weight_decay(0.1)) {}

  /// loss(i) of each micro-batch. Adds to run.losses and run.norms.
  void step(const Setup& setup, const std::function<torch::Tensor(int64_t i)>& loss, Run& run) {
    const double count = static_cast<double>(setup.grad_accum_steps);
    torch::Tensor total = torch::zeros({1});
    for (int64_t i = 0; i < setup.grad_accum_steps; ++i) {
      strategy_.begin();
      torch::Tensor share;
      {
        const BlockRunnerGuard guard(strategy_.runner());
        const Autocast autocast(setup.device(strategy_.rank()), setup.compute_dtype);
        share = loss(i) / count;
      }
      strategy_.backward(phase_, share, /*sync_gradients=*/i + 1 == setup.grad_accum_steps);
      total += share.detach().cpu();
    }
    strategy_.end();
    run.norms.push_back(strategy_.clip_grad_norm(phase_, setup.max_norm).item<double>());
    optimizer_.step();
    run.kept = kept_bytes();
    optimizer_.zero_grad();
    strategy_.updated(phase_);
    strategy_.sum_over_ranks(total);
    run.losses.push_back(total.item<double>() / static_cast<double>(strategy_.world_size()));
  }

 private:
  KeptBytes kept_bytes() const {
    std::vector<torch::Tensor> weights = parameters_, gradients, averages;
    for (const auto& part : strategy_.parts(phase_)) weights.push_back(part.values);
    for (const torch::Tensor& weight : weights) gradients.push_back(weight.grad());
    for (const auto& [parameter, state] : optimizer_.state()) {
      const auto& adam = dynamic_cast<const torch::optim::AdamWParamState&>(*state);
      averages.insert(averages.end(), {adam.exp_avg(), adam.exp_avg_sq(), adam.max_exp_avg_sq()});
    }
    return {storage_bytes(weights), storage_bytes(gradients), storage_bytes(averages)};
  }

  Strategy& strategy_;
  std::vector<torch::Tensor> parameters_;  // of the model
  size_t phase_;
  torch::optim::AdamW optimizer_;
};

void finish(Strategy& strategy, const std::vector<PhaseModel>& phases, Run& run) {
  if (auto* sharded = dynamic_cast<dist::Sharded*>(&strategy)) run.memory = sharded->memory_use();
  {
    const auto whole = strategy.whole();
    for (const auto& phase : phases) {
      for (const auto& parameter : phase.parameters) {
        run.parameters.push_back(parameter.detach().to(torch::kFloat, false, /*copy=*/true));
      }
    }
  }
  strategy.group().barrier();
}

/// A tower learns random targets.
Run train_tower(const Setup& setup, std::unique_ptr<dist::Group> group) {
  const int64_t rank = group->rank();
  const auto strategy = strategy_of(setup, std::move(group));
  Tower tower(setup.shape, /*seed=*/static_cast<uint64_t>(rank));  // rank 0's counts
  const c10::Device device = setup.device(rank);
  tower->to(device);
  const std::vector<PhaseModel> phases{tower->model()};
  strategy->attach(phases, {});
  PhaseTrainer trainer(*strategy, phases, 0);
  const auto generator = at::detail::createCPUGenerator(7);
  Run run;
  for (int64_t step = 0; step < setup.steps; ++step) {
    const int64_t batches = setup.grad_accum_steps;
    const auto x = torch::randn({batches, 12, setup.shape.in}, generator).to(device);
    const auto target = torch::randn({batches, 12, setup.shape.out}, generator).to(device);
    const auto loss = [&](int64_t i) {
      const auto y = tower->forward(own_rows(x[i], *strategy, rank));
      return torch::mse_loss(y.to(torch::kFloat), own_rows(target[i], *strategy, rank));
    };
    trainer.step(setup, loss, run);
  }
  finish(*strategy, phases, run);
  return run;
}

/// A generator against a critic: two phases, a frozen critic in the first, a gradient of one
/// parameter in between, two passes through the critic in the second, validation.
Run train_pair(const Setup& setup, std::unique_ptr<dist::Group> group) {
  const int64_t rank = group->rank();
  const auto strategy = strategy_of(setup, std::move(group));
  Tower generator(Shape{.in = 4, .out = 3}, static_cast<uint64_t>(rank));
  Tower critic(Shape{.in = 3, .dim = 6, .hidden = 3, .num_layers = 2, .out = 1},
               static_cast<uint64_t>(rank) + 10);
  const std::vector<PhaseModel> phases{generator->model(), critic->model()};
  strategy->attach(phases, {});
  PhaseTrainer first(*strategy, phases, 0), second(*strategy, phases, 1);
  const auto random = at::detail::createCPUGenerator(8);
  Run run;
  const auto freeze_critic = [&](bool is_frozen) {
    for (auto& parameter : critic->parameters()) parameter.set_requires_grad(!is_frozen);
  };
  for (int64_t step = 0; step < setup.steps; ++step) {
    const auto x = torch::randn({setup.grad_accum_steps, 12, 4}, random);
    const auto real = torch::randn({setup.grad_accum_steps, 12, 3}, random);
    std::vector<torch::Tensor> fakes;
    const auto generator_loss = [&](int64_t i) {
      const auto y = generator->forward(own_rows(x[i], *strategy, rank));
      fakes.push_back(y.detach());
      const auto distance = torch::mse_loss(y, own_rows(real[i], *strategy, rank));
      freeze_critic(true);
      const auto adversarial = -critic->forward(y).mean();
      freeze_critic(false);
      const auto gradient_norm = [&](const torch::Tensor& loss) {
        return torch::autograd::grad({loss}, {generator->last->weight}, {}, true)[0].norm();
      };
      const auto ratio = gradient_norm(distance) / gradient_norm(adversarial);
      return distance + ratio.clamp(0.5, 0.5) * adversarial;
    };
    const auto critic_loss = [&](int64_t i) {
      const auto on_real = critic->forward(own_rows(real[i], *strategy, rank));
      const auto on_fake = critic->forward(fakes[static_cast<size_t>(i)]);
      return torch::softplus(on_fake).mean() + torch::softplus(-on_real).mean();
    };
    first.step(setup, generator_loss, run);
    second.step(setup, critic_loss, run);
    {
      const torch::NoGradGuard no_grad;
      strategy->begin();
      const BlockRunnerGuard guard(strategy->runner());
      const auto y = critic->forward(generator->forward(x[0]));  // the same on all ranks
      run.losses.push_back(y.square().mean().item<double>());
      strategy->end();
    }
  }
  finish(*strategy, phases, run);
  return run;
}

using Training = std::function<Run(const Setup&, std::unique_ptr<dist::Group>)>;

std::vector<Run> run_all(const Setup& setup, const Training& train) {
  std::vector<Run> runs(static_cast<size_t>(setup.ranks));
  const auto body = [&](std::unique_ptr<dist::Group> group) {
    const auto rank = static_cast<size_t>(group->rank());
    runs[rank] = train(setup, std::move(group));
  };
  test::run_ranks(setup.ranks, body, setup.device_type);
  return runs;
}

Run run_alone(Setup setup, const Training& train) {
  setup.ranks = 1;
  setup.parallel = parallel("none");
  return train(setup, dist::Group::alone());
}

/// The largest |a - b| / |b| of two lists.
double distance(const std::vector<double>& a, const std::vector<double>& b) {
  double worst = a.size() == b.size() ? 0 : INFINITY;
  for (size_t i = 0; i < a.size() && i < b.size(); ++i) {
    const double difference = std::abs(a[i] - b[i]) / std::abs(b[i]);
    worst = std::isnan(difference) ? INFINITY : std::max(worst, difference);
  }
  return worst;
}

void check_equal(const Run& run, const Run& expected, double tolerance = 1e-5) {
  CHECK(distance(run.losses, expected.losses) < tolerance);
  CHECK(distance(run.norms, expected.norms) < tolerance);
  REQUIRE(run.parameters.size() == expected.parameters.size());
  for (size_t i = 0; i < run.parameters.size(); ++i) {
    CHECK_THAT(run.parameters[i], test::AllClose(expected.parameters[i],
                                                 {.absolute = tolerance, .relative = tolerance}));
  }
}

std::vector<Setup> setups() {
  std::vector<Setup> setups;
  for (const int64_t ranks : {2, 3, 4}) {
    setups.push_back({.parallel = parallel("zero1"), .ranks = ranks});
    setups.push_back({.parallel = parallel("fsdp"), .ranks = ranks});
  }
  setups.push_back({.parallel = parallel("hsdp", 2), .ranks = 2});
  setups.push_back({.parallel = parallel("hsdp"), .ranks = 4});  // 2 by ranks_per_host
  setups.push_back({.parallel = parallel("hsdp", 1), .ranks = 3});
  setups.push_back({.parallel = parallel("hsdp"), .ranks = 4, .hosts = {"a", "b", "a", "b"}});
  return setups;
}

void check_against_one_process(const std::vector<Setup>& setups, const Training& train) {
  for (const Setup& setup : setups) {
    CAPTURE(setup.parallel.strategy, setup.ranks, setup.parallel.shard_ranks,
            setup.grad_accum_steps);
    const Run expected = run_alone(setup, train);
    for (const Run& run : run_all(setup, train)) check_equal(run, expected);
  }
}

}  // namespace

TEST_CASE("sharded: the same 20 steps as one process", "[dist]") {
  check_against_one_process(setups(), train_tower);
}

TEST_CASE("sharded: the same on CUDA devices, through NCCL", "[dist][cuda]") {
  if (test::lacks_cuda()) return;
  const int64_t ranks = std::min<int64_t>(4, num_cuda_devices());
  const int64_t half = ranks % 2 == 0 ? ranks / 2 : ranks;
  for (const ParallelConfig& config :
       {parallel("ddp"), parallel("zero1"), parallel("fsdp"), parallel("hsdp", half)}) {
    for (const int64_t batches : {1, 3}) {
      CAPTURE(config.strategy, ranks, batches);
      const Setup setup{.parallel = config,
                        .ranks = ranks,
                        .grad_accum_steps = batches,
                        .device_type = c10::kCUDA};
      const Run expected = run_alone(setup, train_tower);
      for (const Run& run : run_all(setup, train_tower)) check_equal(run, expected, 1e-4);
    }
  }
}

TEST_CASE("sharded: the same with accumulated micro-batches", "[dist]") {
  const std::vector<Setup> some{
      {.parallel = parallel("zero1"), .ranks = 2, .grad_accum_steps = 3},
      {.parallel = parallel("fsdp"), .ranks = 3, .grad_accum_steps = 3},
      {.parallel = parallel("hsdp", 2), .ranks = 4, .grad_accum_steps = 3}};
  check_against_one_process(some, train_tower);
}

TEST_CASE("sharded: the same with blocks that compute twice", "[dist]") {
  std::vector<Setup> some{{.parallel = parallel("ddp"), .ranks = 2},
                          {.parallel = parallel("zero1"), .ranks = 2},
                          {.parallel = parallel("fsdp"), .ranks = 3},
                          {.parallel = parallel("hsdp", 2), .ranks = 4}};
  for (Setup& setup : some) setup.parallel.activation_checkpointing = true;
  check_against_one_process(some, train_tower);
}

TEST_CASE("sharded: any number of blocks is gathered ahead", "[dist]") {
  for (const int64_t blocks : {0, 2, 8}) {
    Setup setup{.parallel = parallel("fsdp"), .ranks = 2};
    setup.parallel.prefetch_blocks = blocks;
    check_against_one_process({setup}, train_tower);
    check_against_one_process({setup}, train_pair);
  }
}

TEST_CASE("sharded: no more blocks are gathered at a time than asked for", "[dist]") {
  for (const int64_t blocks : {0, 1, 2}) {
    CAPTURE(blocks);
    Setup setup{.parallel = parallel("fsdp"), .ranks = 2, .steps = 3, .shape = {.num_layers = 6}};
    setup.parallel.prefetch_blocks = blocks;
    for (const Run& run : run_all(setup, train_tower)) {
      CHECK(run.memory.gathered_blocks == 1 + blocks);
    }
    // Two models and partial backward passes; what ran next the last time may not do so again.
    for (const Run& run : run_all(setup, train_pair)) {
      CHECK(run.memory.gathered_blocks == 1 + blocks);
    }
  }
}

TEST_CASE("sharded: the same with two phases and validation", "[dist]") {
  std::vector<Setup> some{{.parallel = parallel("zero1"), .ranks = 2},
                          {.parallel = parallel("fsdp"), .ranks = 2},
                          {.parallel = parallel("fsdp"), .ranks = 3, .grad_accum_steps = 2},
                          {.parallel = parallel("zero1"), .ranks = 3, .grad_accum_steps = 2},
                          {.parallel = parallel("hsdp", 2), .ranks = 4, .grad_accum_steps = 2}};
  check_against_one_process(some, train_pair);
}

TEST_CASE("sharded: gradients summed in bf16 stay near", "[dist]") {
  for (Setup setup : {Setup{.parallel = parallel("fsdp"), .ranks = 3},
                      Setup{.parallel = parallel("hsdp", 2), .ranks = 4}}) {
    setup.parallel.reduce_dtype = "bf16";
    setup.steps = 5;
    const Run expected = run_alone(setup, train_tower);
    const Run run = run_all(setup, train_tower)[1];
    CHECK(distance(run.losses, expected.losses) < 0.01);
    CHECK(distance(run.norms, expected.norms) < 0.01);
    CHECK(distance(run.norms, expected.norms) > 1e-6);  // it was bf16
  }
}

TEST_CASE("sharded: blocks gathered in bf16, parts in float32", "[dist]") {
  const Setup setup{
      .parallel = parallel("fsdp"), .ranks = 2, .steps = 5, .compute_dtype = c10::kBFloat16};
  const Run expected = run_alone(setup, train_tower);
  const std::vector<std::string> names = Tower(setup.shape, /*seed=*/0)->model().names;
  for (const Run& run : run_all(setup, train_tower)) {
    CHECK(distance(run.losses, expected.losses) < 0.02);
    CHECK(run.memory.parameters == run.memory.gradients);  // float32 both
    for (size_t i = 0; i < run.parameters.size(); ++i) {
      INFO(names[i]);
      if (!names[i].starts_with("layer")) continue;  // outside of blocks
      const auto& value = run.parameters[i];
      CHECK(torch::equal(value, value.to(torch::kBFloat16).to(torch::kFloat)));
    }
  }
}

TEST_CASE("sharded: memory is one part of the whole and a block", "[dist]") {
  Setup setup{.parallel = parallel("fsdp"),
              .steps = 2,
              .shape = {.dim = 33, .hidden = 70, .num_layers = 6}};
  const int64_t block = (2 * 33 * 70 + 33 + 70 + 3 + 6 + 1) * 4;  // bytes of weights
  const int64_t root = (5 * 33 + 34 * 2) * 4;
  const int64_t whole = 6 * block + root;
  for (const int64_t ranks : {2, 3, 4}) {
    setup.ranks = ranks;
    for (const Run& run : run_all(setup, train_tower)) {
      // The optimizer has two averages of each weight.
      CHECK(run.kept.sum() <= 4 * whole / ranks + 4 * block);
      CHECK(run.kept.sum() >= 4 * whole / ranks - 4 * block);
      CHECK(run.kept.averages <= 2 * whole / ranks + 2 * block);
      CHECK(run.kept.averages >= 2 * whole / ranks - 2 * block);
      // What the program says of itself.
      CHECK(run.memory.parameters == run.kept.weights);
      CHECK(run.memory.gradients == run.kept.gradients);
      // Two blocks and the root, and two sums of gradients; each row is a little longer.
      CHECK(run.memory.gathered_peak <= 4 * block + 2 * root + 8 * 1024);
      CHECK(run.memory.gathered_peak >= 2 * block + root);
    }
  }
  setup.parallel.strategy = "zero1";
  const Run run = run_all(setup, train_tower)[0];
  CHECK(run.kept.weights >= whole);
  CHECK(run.kept.gradients <= whole / 4 + block);
  CHECK(run.kept.averages <= 2 * whole / 4 + 2 * block);
  CHECK(run.memory.parameters == run.kept.weights);
  CHECK(run.memory.gradients == run.kept.gradients);
}
