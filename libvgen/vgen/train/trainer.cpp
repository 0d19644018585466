#include "vgen/train/trainer.h"

#include <torch/torch.h>

#include <algorithm>

#include "vgen/core/error.h"
#include "vgen/core/random.h"

namespace vgen::train {

using io::Json;
using Terms = std::vector<std::pair<std::string, at::Tensor>>;

namespace {

constexpr const char* kModelFile = "model.safetensors";
constexpr const char* kEmaFile = "ema.safetensors";
constexpr const char* kOptimizerFile = "optimizer.safetensors";

// "gen" and "grad_norm" make "gen_grad_norm"; the only phase of a task has no name.
std::string in_phase(const std::string& phase, const std::string& name, char separator) {
  return phase.empty() ? name : str_cat(phase, separator, name);
}

void load_file(const NamedTensors& targets, const checkpoint::CheckpointInfo& checkpoint,
               const std::string& file) {
  checkpoint::load_into(targets, io::load_state_dict(str_cat(checkpoint.path, "/", file)));
}

}  // namespace

Trainer::Trainer(const RunConfig& config, Task& task, dist::Strategy& strategy, c10::Device device)
    : config_(config), task_(task), strategy_(strategy) {
  for (const Phase& phase : task.phases()) {
    phase_names_.push_back(phase.name);
    optimizers_.emplace_back(phase.optimizer, phase.parameters);
    scalers_.push_back(
        std::make_unique<GradScaler>(config.precision == "fp16", device, config.grad_scaler));
  }
  base_lr_ = task.phases().front().optimizer.lr;
  if (config.ema_decay > 0) ema_.emplace(task.model(), config.ema_decay);
  const int64_t batches = task.batches_per_epoch();
  config_.schedule = in_steps(config.schedule, steps_per_epoch(config, batches));
  total_steps_ = train::total_steps(config, batches);
}

double Trainer::last_lr() const {
  return base_lr_ * rates_at(config_.schedule, step_ - 1, total_steps_).lr;
}

Terms Trainer::step() {
  // Each step has its own dropout masks, whatever was drawn before: nothing to save.
  torch::manual_seed(Rng(static_cast<uint64_t>(config_.seed), Purpose::kDropout,
                         static_cast<uint64_t>(step_), static_cast<uint64_t>(strategy_.rank()))
                         .derive_seed());
  task_.next_batches(config_.grad_accum_steps);
  Terms terms;
  for (size_t phase = 0; phase < optimizers_.size(); ++phase) {
    Terms phase_terms = run_phase(phase);
    std::ranges::move(phase_terms, std::back_inserter(terms));
  }
  if (ema_) ema_->update();
  ++step_;
  return terms;
}

Terms Trainer::run_phase(size_t phase) {
  Optimizer& optimizer = optimizers_[phase];
  GradScaler& scaler = *scalers_[phase];
  const int64_t count = config_.grad_accum_steps;
  Terms terms;
  for (int64_t i = 0; i < count; ++i) {
    const PhaseLoss loss = task_.loss(phase, static_cast<size_t>(i), step_ + 1);
    strategy_.backward(scaler.scale(loss.loss / static_cast<double>(count)),
                       /*sync_gradients=*/i + 1 == count);
    for (size_t t = 0; t < loss.terms.size(); ++t) {
      const auto& [name, value] = loss.terms[t];
      const at::Tensor share = value / static_cast<double>(count);
      if (i == 0) {
        terms.emplace_back(name, share);
      } else {
        terms[t].second = terms[t].second + share;
      }
    }
  }
  at::Tensor found_inf;
  if (scaler.is_enabled()) found_inf = scaler.unscale(optimizer.parameters());
  const at::Tensor norm = strategy_.clip_grad_norm(optimizer.parameters(), config_.max_grad_norm);
  if (!scaler.is_enabled()) found_inf = norm.isfinite().logical_not().to(at::kFloat);
  optimizer.step(rates_at(config_.schedule, step_, total_steps_), found_inf);
  scaler.update(found_inf);
  optimizer.zero_grad();  // now, so that the next phase and the next step have the memory
  terms.emplace_back(in_phase(phase_names_[phase], "grad_norm", '_'), norm);
  return terms;
}

checkpoint::Snapshot Trainer::snapshot() const {
  checkpoint::Snapshot snapshot;
  snapshot.step = step_;
  const io::Metadata metadata{{"format", "pt"}};
  snapshot.files.push_back({kModelFile, checkpoint::named_state(task_.model()), metadata});
  if (ema_) snapshot.files.push_back({kEmaFile, ema_->state(), metadata});
  for (const auto& [name, module] : task_.companions()) {
    snapshot.files.push_back({name + ".safetensors", checkpoint::named_state(*module), metadata});
  }
  NamedTensors state;
  Json scalers = Json::array();
  for (size_t i = 0; i < optimizers_.size(); ++i) {
    std::ranges::move(optimizers_[i].state(in_phase(phase_names_[i], "", '.')),
                      std::back_inserter(state));
    scalers.add(scalers_[i]->state());
  }
  snapshot.files.push_back({kOptimizerFile, std::move(state)});

  const data::LoaderPosition position = task_.position();
  Json data = Json::object();
  data.set("epoch", Json::number(position.epoch));
  data.set("sample", Json::number(position.sample));
  snapshot.state = Json::object();
  snapshot.state.set("step", Json::number(step_));
  snapshot.state.set("data", std::move(data));
  snapshot.state.set("scalers", std::move(scalers));
  return snapshot;
}

void Trainer::restore(const checkpoint::CheckpointInfo& checkpoint) {
  load_file(checkpoint::named_state(task_.model()), checkpoint, kModelFile);
  if (ema_) load_file(ema_->state(), checkpoint, kEmaFile);
  for (const auto& [name, module] : task_.companions()) {
    load_file(checkpoint::named_state(*module), checkpoint, name + ".safetensors");
  }
  NamedTensors state;
  for (size_t i = 0; i < optimizers_.size(); ++i) {
    std::ranges::move(optimizers_[i].state(in_phase(phase_names_[i], "", '.')),
                      std::back_inserter(state));
  }
  load_file(state, checkpoint, kOptimizerFile);

  const Json values = checkpoint::read_state(checkpoint);
  try {
    const auto& scalers = values.get_array("scalers").items;
    require(scalers.size() == scalers_.size(), ErrorCode::kDataCorrupt, "'scalers' has ",
            scalers.size(), " items, expected ", scalers_.size());
    for (size_t i = 0; i < scalers.size(); ++i) scalers_[i]->load_state(scalers[i]);
    const Json& data = values.get_object("data");
    task_.seek({data.get_int("epoch"), data.get_int("sample")});
    step_ = values.get_int("step");
  } catch (Error& error) {
    error.add_context(checkpoint.path + "/state.json");
    throw;
  }
}

}  // namespace vgen::train
