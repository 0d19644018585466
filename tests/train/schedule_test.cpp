// Schedules against the official code, the loss scale with a limit, the stages of progressive
// training, and which parameters decay.

#include "vgen/train/schedule.h"

#include <torch/torch.h>

#include <catch2/catch.hpp>
#include <cmath>

#include "support/golden.h"
#include "support/support.h"
#include "support/torch_support.h"
#include "vgen/train/grad_scaler.h"
#include "vgen/train/label_dropout.h"
#include "vgen/train/optimizer.h"
#include "vgen/train/progressive.h"
#include "vgen/train/run_config.h"

namespace vgen::train {
namespace {

using Catch::Contains;
using test::error_of;
using test::golden_tensor;

TEST_CASE("schedule: learning rates and weight decays of VAR", "[train][golden]") {
  struct Case {
    const char* file;
    const char* kind;
    double turn = 0;
  };
  const auto [file, kind, turn] =
      GENERATE(Case{"cos", "cos"}, Case{"lin", "lin"}, Case{"lin0", "lin0"}, Case{"lin00", "lin00"},
               Case{"lin0.3", "linT", 0.3}, Case{"exp", "exp"});
  INFO(file);
  // The settings of golden/schedules/meta.json; a warm-up of 7.4 iterations, which is rounded.
  const ScheduleConfig config = in_steps({.kind = kind,
                                          .warmup_epochs = 0.74,
                                          .warmup_start = 0.005,
                                          .final_ratio = 0.01,
                                          .turn = turn,
                                          .weight_decay_final_ratio = 0.2 / 0.05},
                                         /*steps_per_epoch=*/10);
  CHECK(config.warmup_steps == 7);
  const auto lr_S = golden_tensor(str_cat("schedules/lr_", file, ".npy"));
  const auto wd_S = golden_tensor(str_cat("schedules/wd_", file, ".npy"));
  REQUIRE(lr_S.size(0) == 60);
  for (int64_t step = 0; step < 60; ++step) {
    INFO("step " << step);
    const Rates rates = rates_at(config, step, 60);
    CHECK(3e-4 * rates.lr == Approx(lr_S[step].item<double>()).epsilon(1e-6));
    CHECK(0.05 * rates.weight_decay == Approx(wd_S[step].item<double>()).epsilon(1e-6));
  }
}

TEST_CASE("schedule: ends of VAR's kinds", "[train]") {
  for (const char* kind : {"cos", "exp", "lin", "lin0", "lin00", "linT"}) {
    INFO(kind);
    for (const double turn : {0.0, 0.5, 1.0}) {
      for (const double end : {0.0, 0.1}) {
        const ScheduleConfig config{.kind = kind, .final_ratio = end, .turn = turn};
        for (const int64_t total : {1, 2, 50}) {
          for (int64_t step = 0; step < total; ++step) {
            CHECK(std::isfinite(rates_at(config, step, total).lr));
          }
        }
        if (turn < 1) CHECK(rates_at(config, 49, 50).lr == Approx(end).margin(1e-12));
        if (turn < 1) CHECK(rates_at(config, 90, 50).lr == Approx(end).margin(1e-12));
      }
    }
  }
  CHECK(rates_at({.kind = "lin0"}, 7, 50).weight_decay == 1);
}

TEST_CASE("schedule: a warm-up is given once", "[train]") {
  CHECK(in_steps({.warmup_steps = 5}, 10).warmup_steps == 5);
  CHECK(in_steps({.warmup_epochs = 2}, 10).warmup_steps == 20);
  CHECK_THAT(error_of([] { in_steps({.warmup_steps = 5, .warmup_epochs = 2}, 10); }),
             Contains("schedule.warmup_steps is 5 and schedule.warmup_epochs is 2"));
}

TEST_CASE("run config: epochs and steps", "[train]") {
  RunConfig config;
  config.grad_accum_steps = 4;
  config.epochs = 3;
  CHECK(steps_per_epoch(config, 22) == 5);
  CHECK(steps_per_epoch(config, 3) == 1);
  CHECK(total_steps(config, 22) == 15);
  config.steps = 7;
  CHECK(total_steps(config, 22) == 7);
}

TEST_CASE("grad scaler: VAR's goes back to its limit", "[train]") {
  GradScaler scaler(true, torch::kCPU,
                    {.initial_scale = 2048, .growth_interval = 10, .max_scale = 4096});
  const auto fine = torch::zeros({}), overflow = torch::ones({});
  const auto after = [&](int steps, const torch::Tensor& found_inf) {
    for (int i = 0; i < steps; ++i) scaler.update(found_inf);
    return scaler.current_scale();
  };
  CHECK(scaler.current_scale() == 2048);
  CHECK(after(9, fine) == 2048);
  CHECK(after(1, fine) == 4096);   // equal to the limit: grows as ever
  CHECK(after(10, fine) == 8192);  // above it for one step
  CHECK(after(1, fine) == 4096);
  CHECK(scaler.state().get_int("growth_tracker") == 0);  // that step did not count
  CHECK(after(10, fine) == 8192);
  CHECK(after(1, overflow) == 4096);  // set back, not halved as well
  CHECK(after(1, overflow) == 2048);
}

TEST_CASE("optimizer: parameters are left out of the decay by parts of their names", "[train]") {
  NamedTensors parameters;
  for (const char* name : {"pos_1LC", "a.pos_start.x", "head.weight", "lvl"}) {
    parameters.push_back({name, torch::ones({2, 2}).requires_grad_()});
    parameters.back().tensor.mutable_grad() = torch::zeros({2, 2});
  }
  Optimizer optimizer({.kind = "adamw",
                       .lr = 0.1,
                       .weight_decay = 0.5,
                       .no_decay = {"pos_1LC", "pos_start", "no_such"}},
                      parameters);
  optimizer.step({.weight_decay = 0.5});
  const auto value = [&](size_t i) { return parameters[i].tensor[0][0].item<float>(); };
  CHECK(value(0) == 1);
  CHECK(value(1) == 1);
  CHECK(value(2) == Approx(1 - 0.1 * 0.5 * 0.5));
  CHECK(value(3) == Approx(1 - 0.1 * 0.5 * 0.5));
}

TEST_CASE("progressive training: scales come in one after the other", "[train]") {
  // Ten scales, the first stage has five of them; warm-up 10 of 200 steps, all scales at 100.
  const ProgressiveConfig config{.share = 0.5, .first_scale = 4, .warmup_epochs = 0.4};
  const RunLength length{.total_steps = 200, .warmup_steps = 10, .steps_per_epoch = 20};
  const auto at = [&](int64_t step) { return progressive_stage(config, 10, length, step); };
  int64_t last = 4, in_stage = 0;
  for (int64_t step = 0; step < 200; ++step) {
    INFO("step " << step);
    const ProgressiveStage stage = at(step);
    const double done = std::clamp((step - 10) / 90.0, 0.0, 1.0);
    CHECK(stage.last_scale == (step >= 100 ? 9 : 4 + std::lrint(done * 5)));
    if (stage.last_scale != last) in_stage = 0;
    last = stage.last_scale;
    ++in_stage;
    const bool is_first_or_last = last == 4 || last == 9;
    // 0.4 epochs are 8 steps.
    CHECK(stage.newest_weight ==
          Approx(is_first_or_last ? 1 : std::min(1.0, static_cast<double>(in_stage) / 8)));
  }
  CHECK(last == 9);
  CHECK(progressive_stage({}, 10, length, 0).last_scale == 9);
  CHECK(progressive_stage({.share = 0.5, .first_scale = 9}, 10, length, 0).last_scale == 9);
  // By default a new scale takes a 300th of the run, at least a hundredth of its weight at once.
  const RunLength long_run{.total_steps = 300000, .warmup_steps = 0, .steps_per_epoch = 1};
  int64_t step = 0;
  const auto stage_at = [&](int64_t s) {
    return progressive_stage({.share = 0.5}, 10, long_run, s);
  };
  while (stage_at(step).last_scale == 4) ++step;
  CHECK(stage_at(step).newest_weight == 0.01);
  CHECK(stage_at(step + 499).newest_weight == Approx(0.5));
  CHECK(stage_at(step + 2000).newest_weight == 1);
}

TEST_CASE("label dropout: by step and sample alone", "[train]") {
  std::vector<int64_t> index;
  for (int64_t i = 0; i < 1000; ++i) index.push_back(i);
  const auto label_B = torch::arange(1000) % 7;
  const LabelDropout dropout{.prob = 0.25, .null_class = 7, .seed = 3};
  const auto dropped_B = drop_labels(label_B, index, 5, dropout);
  const auto is_dropped_B = dropped_B.eq(7);
  CHECK(is_dropped_B.sum().item<int64_t>() == Approx(250).margin(50));
  CHECK(torch::equal(torch::where(is_dropped_B, label_B, dropped_B), label_B));
  CHECK_FALSE(torch::equal(drop_labels(label_B, index, 6, dropout), dropped_B));
  // A batch of its own for a few of them.
  const auto few_B = drop_labels(label_B.slice(0, 300, 340),
                                 {index.begin() + 300, index.begin() + 340}, 5, dropout);
  CHECK(torch::equal(few_B, dropped_B.slice(0, 300, 340)));
}

}  // namespace
}  // namespace vgen::train
