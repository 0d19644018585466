#include "vgen/train/optimizer.h"

#include <torch/torch.h>

#include <catch2/catch.hpp>

#include "support/support.h"
#include "support/torch_support.h"
#include "vgen/train/ema.h"
#include "vgen/train/grad_scaler.h"

using namespace vgen;
using namespace vgen::train;
using Catch::Matchers::Contains;

namespace {

NamedTensors parameters_of(std::initializer_list<const char*> names) {
  NamedTensors parameters;
  for (const char* name : names) {
    const bool is_vector = std::string(name).ends_with("bias");
    auto value = is_vector ? torch::randn({3}) : torch::randn({3, 2});
    parameters.push_back({name, value.requires_grad_(true)});
  }
  return parameters;
}

void set_gradients(const NamedTensors& parameters, double value) {
  for (const auto& item : parameters) {
    item.tensor.mutable_grad() = torch::full_like(item.tensor, value).detach();
  }
}

template <class Reference, class Options>
void compare_with(const Options& options, const OptimizerConfig& config) {
  torch::manual_seed(3);
  const auto ours = parameters_of({"a.weight", "a.bias"});
  std::vector<torch::Tensor> theirs;
  for (const auto& item : ours) theirs.push_back(item.tensor.detach().clone().requires_grad_());
  Optimizer optimizer(config, ours);
  Reference reference(theirs, options);
  for (int step = 0; step < 10; ++step) {
    for (size_t i = 0; i < theirs.size(); ++i) {
      const auto gradient = torch::randn_like(theirs[i]);
      ours[i].tensor.mutable_grad() = gradient.clone();
      theirs[i].mutable_grad() = gradient.clone();
    }
    optimizer.step({});
    reference.step();
  }
  for (size_t i = 0; i < theirs.size(); ++i) {
    CHECK_THAT(ours[i].tensor, test::AllClose(theirs[i], {1e-7, 1e-6}));
  }
}

}  // namespace

TEST_CASE("optimizer: equals torch::optim's Adam and AdamW", "[train]") {
  compare_with<torch::optim::Adam>(
      torch::optim::AdamOptions(1e-2).betas({0.9, 0.95}).weight_decay(0.1),
      {.lr = 1e-2, .weight_decay = 0.1});
  compare_with<torch::optim::AdamW>(
      torch::optim::AdamWOptions(1e-2).betas({0.9, 0.95}).weight_decay(0.1),
      {.kind = "adamw", .lr = 1e-2, .weight_decay = 0.1});
}

TEST_CASE("optimizer: a step is seen by who keeps something derived from a parameter", "[train]") {
  const auto parameters = parameters_of({"a.weight", "a.bias"});
  Optimizer optimizer({}, parameters);
  set_gradients(parameters, 1);
  const auto before = parameters[0].tensor._version();
  optimizer.step({});
  CHECK(parameters[0].tensor._version() > before);
  CHECK(parameters[1].tensor._version() > 0);
}

TEST_CASE("optimizer: strides of axes of length 1 do not matter", "[train]") {
  const auto weight = torch::ones({4, 3, 1, 1}).requires_grad_();  // of a 1x1 convolution
  weight.mutable_grad() =
      torch::arange(12.0f).as_strided({4, 3, 1, 1}, {3, 1, 3, 3});  // as channels-last has it
  Optimizer optimizer({.lr = 0.5}, {{"weight", weight}});
  optimizer.step({});
  CHECK(weight.flatten()[0].item<float>() == 1);  // no gradient
  CHECK(weight.flatten()[11].item<float>() == Approx(0.5));
}

TEST_CASE("optimizer: rules choose rates by name, the first match counts", "[train]") {
  auto parameters = parameters_of({"a.weight", "a.bias", "b.weight"});
  for (auto& item : parameters) item.tensor.detach().fill_(1.0);
  // AdamW with zero gradients: only the decay moves a weight, by lr * scale * decay.
  Optimizer optimizer({.kind = "adamw",
                       .lr = 0.1,
                       .weight_decay = 0.5,
                       .decay_min_dims = 2,
                       .rules = {{.match = "b.*", .lr_scale = 0.5, .weight_decay = 0.4},
                                 {.match = "*", .lr_scale = 1, .weight_decay = 0.2}}},
                      parameters);
  set_gradients(parameters, 0);
  optimizer.step({});
  CHECK(parameters[0].tensor.flatten()[0].item<float>() == Approx(1 - 0.1 * 0.2));
  CHECK(parameters[1].tensor.flatten()[0].item<float>() == Approx(1 - 0.1 * 0.2));
  CHECK(parameters[2].tensor.flatten()[0].item<float>() == Approx(1 - 0.05 * 0.4));

  Optimizer plain({.kind = "adamw", .lr = 0.1, .weight_decay = 0.5, .decay_min_dims = 2},
                  parameters_of({"a.weight", "a.bias"}));
  CHECK_THAT(test::error_of([&] { Optimizer({.rules = {{.match = "c.*"}}}, parameters); }),
             Contains("optimizer.rules.0.match 'c.*' matches no parameter"));
}

TEST_CASE("optimizer: what a rule does not name is as without the rule", "[train]") {
  const auto config = read_config<OptimizerConfig>(
      parse_yaml("kind: adamw\nlr: 0.1\nweight_decay: 0.5\ndecay_min_dims: 2\nno_decay: [pos]\n"
                 "rules: [{match: a.*, lr_scale: 0.5}, {match: b.*, weight_decay: 0.4}, "
                 "{match: c.*, weight_decay: 0}, {match: pos.*, lr_scale: 2}]\n",
                 "run.yaml"));
  auto parameters = parameters_of(
      {"a.weight", "a.bias", "b.weight", "b.bias", "c.weight", "pos.weight", "d.weight"});
  for (auto& item : parameters) item.tensor.detach().fill_(1.0);
  Optimizer optimizer(config, parameters);
  set_gradients(parameters, 0);
  optimizer.step({});
  const auto decay = [&](size_t i) { return 1 - parameters[i].tensor.flatten()[0].item<float>(); };
  CHECK(decay(0) == Approx(0.05 * 0.5).epsilon(1e-4));  // lr_scale alone: the section's decay
  CHECK(decay(1) == 0);                                 // and its decay_min_dims
  CHECK(decay(2) == Approx(0.1 * 0.4).epsilon(1e-4));
  CHECK(decay(3) == Approx(0.1 * 0.4).epsilon(1e-4));  // a decay that is named is that of all
  CHECK(decay(4) == 0);
  CHECK(decay(5) == 0);  // no_decay
  CHECK(decay(6) == Approx(0.1 * 0.5).epsilon(1e-4));

  // What is written for the open value reads back as open.
  const std::string yaml = dump_config(config);
  CHECK_THAT(yaml, Contains("weight_decay: -1\n"));
  CHECK(dump_config(read_config<OptimizerConfig>(parse_yaml(yaml, "again.yaml"))) == yaml);
  CHECK_THAT(test::error_of(
                 [&] { Optimizer({.rules = {{.match = "*", .weight_decay = -0.1}}}, parameters); }),
             Contains("optimizer.rules.0.weight_decay is -0.1; expected at least 0, or -1"));
}

TEST_CASE("optimizer: vectors have no decay below decay_min_dims", "[train]") {
  auto parameters = parameters_of({"a.weight", "a.bias"});
  for (auto& item : parameters) item.tensor.detach().fill_(1.0);
  Optimizer optimizer({.kind = "adamw", .lr = 0.1, .weight_decay = 0.5, .decay_min_dims = 2},
                      parameters);
  set_gradients(parameters, 0);
  optimizer.step({});
  CHECK(parameters[0].tensor[0][0].item<float>() == Approx(0.95));
  CHECK(parameters[1].tensor[0].item<float>() == 1.0f);
}

TEST_CASE("optimizer: an infinite gradient changes nothing, not even the step count", "[train]") {
  auto parameters = parameters_of({"a.weight"});
  Optimizer optimizer({.lr = 0.1}, parameters);
  const auto before = parameters[0].tensor.detach().clone();
  set_gradients(parameters, 1);
  optimizer.step({}, torch::ones({}));
  CHECK(torch::equal(parameters[0].tensor, before));
  CHECK(optimizer.state("")[0].tensor[0].item<float>() == 0);
  optimizer.step({}, torch::zeros({}));
  CHECK_FALSE(torch::equal(parameters[0].tensor, before));
  CHECK(optimizer.state("")[0].tensor[0].item<float>() == 1);
}

TEST_CASE("optimizer: restored state continues to the same bits", "[train]") {
  torch::manual_seed(5);
  auto first = parameters_of({"a.weight", "a.bias"});
  Optimizer optimizer({}, first);
  set_gradients(first, 0.3);
  optimizer.step({});
  NamedTensors second;
  for (const auto& item : first) {
    second.push_back({item.name, item.tensor.detach().clone().requires_grad_()});
  }
  Optimizer restored({}, second);
  io::StateDict saved;
  saved.tensors = checkpoint::as_arrays(optimizer.state("g."));
  checkpoint::load_into(restored.state("g."), saved);
  for (int step = 0; step < 3; ++step) {
    set_gradients(first, -0.1);
    set_gradients(second, -0.1);
    optimizer.step({});
    restored.step({});
  }
  for (size_t i = 0; i < first.size(); ++i) CHECK(torch::equal(first[i].tensor, second[i].tensor));
}

TEST_CASE("schedule: warm-up, constant, linear and cosine", "[train]") {
  CHECK(rates_at({}, 5, 10).lr == 1);
  const ScheduleConfig warm{.warmup_steps = 4, .warmup_start = 0.2};
  CHECK(rates_at(warm, 0, 10).lr == Approx(0.4));
  CHECK(rates_at(warm, 3, 10).lr == Approx(1.0));
  CHECK(rates_at(warm, 4, 10).lr == 1);
  const ScheduleConfig linear{.kind = "linear", .warmup_steps = 2, .final_ratio = 0.1};
  CHECK(rates_at(linear, 1, 12).lr == Approx(1.0));
  CHECK(rates_at(linear, 2, 12).lr == Approx(1.0));
  CHECK(rates_at(linear, 11, 12).lr == Approx(0.1));
  CHECK(rates_at(linear, 50, 12).lr == Approx(0.1));
  const ScheduleConfig cosine{.kind = "cosine"};
  CHECK(rates_at(cosine, 0, 11).lr == Approx(1.0));
  CHECK(rates_at(cosine, 5, 11).lr == Approx(0.5));
  CHECK(rates_at(cosine, 10, 11).lr == Approx(0.0).margin(1e-12));
}

TEST_CASE("grad scaler: unscales, backs off and grows", "[train]") {
  auto parameters = parameters_of({"a.weight"});
  GradScaler scaler(true, torch::kCPU);
  CHECK(scaler.scale(torch::ones({})).item<float>() == 65536);
  set_gradients(parameters, 65536);
  const std::vector<torch::Tensor> tensors{parameters[0].tensor};
  CHECK(scaler.unscale(tensors).item<float>() == 0);
  CHECK(parameters[0].tensor.grad()[0][0].item<float>() == 1);
  set_gradients(parameters, std::numeric_limits<double>::infinity());
  const auto found_inf = scaler.unscale(tensors);
  CHECK(found_inf.item<float>() == 1);
  scaler.update(found_inf);
  CHECK(scaler.current_scale() == 32768);
  for (int i = 0; i < 2000; ++i) scaler.update(torch::zeros({}));
  CHECK(scaler.current_scale() == 65536);

  scaler.update(torch::zeros({}));
  GradScaler restored(true, torch::kCPU);
  restored.load_state(scaler.state());
  CHECK(restored.state().get_int("growth_tracker") == 1);

  GradScaler off(false, torch::kCPU);
  CHECK(off.scale(torch::ones({})).item<float>() == 1);
  off.update(torch::ones({}));
  CHECK(off.current_scale() == 1);
}

TEST_CASE("ema: follows the parameters, swaps in and out", "[train]") {
  torch::nn::BatchNorm2d module(2);
  Ema ema(checkpoint::named_parameters(*module), 0.9);
  const torch::NoGradGuard no_grad;
  module->weight.fill_(2.0);  // was 1
  ema.update();
  const auto state = ema.state();
  CHECK(state.size() == 2);
  CHECK(state[0].name == "weight");
  CHECK_THAT(state[0].tensor, test::AllClose(torch::full({2}, 1.1), test::kFloat32));
  ema.swap();
  CHECK(module->weight[0].item<float>() == Approx(1.1));
  ema.swap();
  CHECK(module->weight[0].item<float>() == 2);
  CHECK(ema.state()[0].tensor[0].item<float>() == Approx(1.1));
}
