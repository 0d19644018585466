#include "vgen/train/trainer.h"

#include <torch/torch.h>

#include <algorithm>

#include "vgen/checkpoint/load.h"
#include "vgen/core/error.h"
#include "vgen/core/random.h"

namespace vgen::train {

using checkpoint::load_file;
using checkpoint::NamedTensor;
using io::Json;

namespace {

constexpr const char* kModelFile = "model.safetensors";
constexpr const char* kEmaFile = "ema.safetensors";
constexpr const char* kOptimizerFile = "optimizer.safetensors";

// "gen" and "grad_norm" make "gen_grad_norm"; the only phase of a task has no name.
std::string in_phase(const std::string& phase, const std::string& name, char separator) {
  return phase.empty() ? name : str_cat(phase, separator, name);
}

bool is_before(const data::LoaderPosition& a, const data::LoaderPosition& b) {
  return std::pair(a.epoch, a.sample) < std::pair(b.epoch, b.sample);
}

Json position_json(const data::LoaderPosition& position) {
  Json json = Json::object();
  json.set("epoch", Json::number(position.epoch));
  json.set("sample", Json::number(position.sample));
  return json;
}

}  // namespace

Trainer::Trainer(const RunConfig& config, Task& task, dist::Strategy& strategy, c10::Device device)
    : config_(config), task_(task), strategy_(strategy) {
  attach_models();
  const std::vector<Phase> phases = task.phases();
  for (size_t i = 0; i < phases.size(); ++i) {
    phase_names_.push_back(phases[i].name);
    NamedTensors parts;
    for (const dist::ParameterPart& part : strategy.parts(i)) {
      parts.push_back({part.name, part.values, {}, part.begin});
      if (strategy.is_sharded()) parts.back().whole_sizes = part.sizes;
    }
    for (size_t p = 0; p < parts.size(); ++p) {
      parts_.emplace(phases[i].parameters[p].tensor.unsafeGetTensorImpl(), parts[p]);
    }
    optimizers_.emplace_back(phases[i].optimizer, parts);
    scalers_.push_back(
        std::make_unique<GradScaler>(config.precision == "fp16", device, config.grad_scaler));
  }
  base_lr_ = phases.front().optimizer.lr;
  if (config.ema_decay > 0) {
    NamedTensors averaged;
    for (const NamedTensor& item : checkpoint::named_parameters(task.model())) {
      const auto part = parts_.find(item.tensor.unsafeGetTensorImpl());
      averaged.push_back(part == parts_.end() ? item : part->second);
      averaged.back().name = item.name;
    }
    ema_.emplace(std::move(averaged), config.ema_decay);
  }
  const int64_t batches = task.batches_per_epoch();
  config_.schedule = in_steps(config.schedule, steps_per_epoch(config, batches));
  total_steps_ = train::total_steps(config, batches);
}

void Trainer::attach_models() {
  std::vector<dist::PhaseModel> models;
  for (const Phase& phase : task_.phases()) {
    dist::PhaseModel model;
    for (const NamedTensor& item : phase.parameters) {
      model.names.push_back(item.name);
      model.parameters.push_back(item.tensor);
    }
    model.blocks = phase.blocks;
    model.is_float32 = phase.is_float32;
    models.push_back(std::move(model));
  }
  std::vector<at::Tensor> buffers = task_.model().buffers();
  for (const auto& [name, module] : task_.companions()) {
    std::ranges::move(module->buffers(), std::back_inserter(buffers));
  }
  strategy_.attach(models, buffers);
}

void Trainer::Average::change() {
  if (!trainer_.ema_) return;
  trainer_.ema_->swap();
  for (size_t phase = 0; phase < trainer_.optimizers_.size(); ++phase) {
    trainer_.strategy_.updated(phase);
  }
}

double Trainer::last_lr() const {
  return base_lr_ * rates_at(config_.schedule, step_ - 1, total_steps_).lr;
}

Trainer::Terms Trainer::step() {
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
  return mean_over_ranks(terms);
}

Trainer::Terms Trainer::mean_over_ranks(const Terms& terms) {
  if (strategy_.world_size() == 1) return terms;
  std::vector<at::Tensor> values;
  for (const auto& [name, value] : terms) values.push_back(value.to(at::kFloat).reshape({}));
  at::Tensor means = at::stack(values);
  strategy_.sum_over_ranks(means);
  means.div_(static_cast<double>(strategy_.world_size()));
  Terms result;
  for (const auto& [name, value] : terms) {
    result.emplace_back(name, means[static_cast<int64_t>(result.size())]);
  }
  return result;
}

Trainer::Terms Trainer::run_phase(size_t phase) {
  Optimizer& optimizer = optimizers_[phase];
  GradScaler& scaler = *scalers_[phase];
  const int64_t count = config_.grad_accum_steps;
  Terms terms;
  for (int64_t i = 0; i < count; ++i) {
    strategy_.begin();
    const PhaseLoss loss = [&] {
      const BlockRunnerGuard guard(strategy_.runner());
      return task_.loss(phase, static_cast<size_t>(i), step_ + 1);
    }();
    if (loss.has_written_parameters) strategy_.take_over(phase);
    strategy_.backward(phase, scaler.scale(loss.loss / static_cast<double>(count)),
                       /*sync_gradients=*/i + 1 == count);
    strategy_.end();
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
  if (scaler.is_enabled()) {
    found_inf = scaler.unscale(optimizer.parameters());
    strategy_.sum_over_ranks(found_inf);
    found_inf.clamp_max_(1);
  }
  const at::Tensor norm = strategy_.clip_grad_norm(phase, config_.max_grad_norm);
  if (!scaler.is_enabled()) found_inf = norm.isfinite().logical_not().to(at::kFloat);
  optimizer.step(rates_at(config_.schedule, step_, total_steps_), found_inf);
  scaler.update(found_inf);
  strategy_.updated(phase);
  optimizer.zero_grad();  // now, so that the next phase and the next step have the memory
  terms.emplace_back(in_phase(phase_names_[phase], "grad_norm", '_'), norm);
  return terms;
}

NamedTensors Trainer::state_of(const torch::nn::Module& module) const {
  NamedTensors tensors = checkpoint::named_state(module);
  for (NamedTensor& item : tensors) {
    const auto part = parts_.find(item.tensor.unsafeGetTensorImpl());
    if (part == parts_.end()) continue;  // a buffer
    const std::string name = item.name;
    item = part->second;
    item.name = name;
  }
  return tensors;
}

NamedTensors Trainer::averaged_state() const {
  NamedTensors tensors = state_of(task_.model());
  size_t next = 0;
  for (NamedTensor& item : tensors) {
    if (next < ema_->state().size() && item.name == ema_->state()[next].name) {
      item = ema_->state()[next++];
    }
  }
  return tensors;
}

NamedTensors Trainer::optimizer_state() const {
  NamedTensors state;
  for (size_t i = 0; i < optimizers_.size(); ++i) {
    std::ranges::move(optimizers_[i].state(in_phase(phase_names_[i], "", '.')),
                      std::back_inserter(state));
  }
  return state;
}

checkpoint::Snapshot Trainer::snapshot() const {
  checkpoint::Snapshot snapshot;
  snapshot.step = step_;
  const io::Metadata metadata{{"format", "pt"}};
  io::Metadata of_model = task_.metadata();
  of_model.insert(metadata.begin(), metadata.end());
  snapshot.files.push_back({kModelFile, state_of(task_.model()), of_model});
  if (ema_) snapshot.files.push_back({kEmaFile, averaged_state(), of_model});
  for (const auto& [name, module] : task_.companions()) {
    snapshot.files.push_back({name + ".safetensors", state_of(*module), metadata});
  }
  snapshot.files.push_back({kOptimizerFile, optimizer_state()});
  Json scalers = Json::array();
  for (const auto& scaler : scalers_) scalers.add(scaler->state());

  const std::vector<data::LoaderPosition> positions = positions_of_ranks();
  const data::LoaderPosition least = *std::ranges::min_element(positions, is_before);
  Json data = Json::object();
  data.set("epoch", Json::number(least.epoch));
  data.set("sample", Json::number(least.sample));
  data.set("ranks", Json::number(strategy_.world_size()));
  if (std::ranges::count(positions, least) != strategy_.world_size()) {
    Json& rows = data.set("positions", Json::array());
    for (const data::LoaderPosition& position : positions) rows.add(position_json(position));
  }
  snapshot.state = Json::object();
  snapshot.state.set("step", Json::number(step_));
  snapshot.state.set("data", std::move(data));
  snapshot.state.set("scalers", std::move(scalers));
  return snapshot;
}

// The ranks differ where broken images were passed over.
std::vector<data::LoaderPosition> Trainer::positions_of_ranks() const {
  const data::LoaderPosition own = task_.position();
  const at::Tensor all_R2 = at::zeros({strategy_.world_size(), 2}, at::kLong);
  all_R2[strategy_.rank()].copy_(torch::tensor({own.epoch, own.sample}));
  strategy_.sum_over_ranks(all_R2);
  const auto values = all_R2.accessor<int64_t, 2>();
  std::vector<data::LoaderPosition> positions;
  for (int64_t rank = 0; rank < all_R2.size(0); ++rank) {
    positions.push_back({values[rank][0], values[rank][1]});
  }
  return positions;
}

// The ranks take the samples of an epoch in turns, so that together they have taken its first ones:
// another number of ranks goes on behind those. Where the ranks did not stand alike, it is behind
// the first that all had taken: a few samples are seen again, none is left out.
data::LoaderPosition Trainer::own_position(const Json& data) const {
  const int64_t ranks = data.find("ranks") == nullptr ? 1 : data.get_int("ranks");
  const int64_t now = strategy_.world_size();
  data::LoaderPosition position{data.get_int("epoch"), data.get_int("sample")};
  if (ranks != now) {
    // What is left of an epoch behind its last batch is not taken; here it may be another one.
    const int64_t last = task_.batches_per_epoch() * micro_batch_size(config_, now);
    position.sample = std::min(position.sample * ranks / now, last);
  } else if (data.find("positions") != nullptr) {
    const auto& rows = data.get_array("positions").items;
    require(rows.size() == static_cast<size_t>(now), ErrorCode::kDataCorrupt, "'positions' has ",
            rows.size(), " items, expected ", now);
    const Json& row = rows[static_cast<size_t>(strategy_.rank())];
    position = {row.get_int("epoch"), row.get_int("sample")};
  }
  return position;
}

void Trainer::restore(const checkpoint::CheckpointInfo& checkpoint) {
  load_file(checkpoint, kModelFile, state_of(task_.model()));
  if (ema_) load_file(checkpoint, kEmaFile, averaged_state());
  for (const auto& [name, module] : task_.companions()) {
    load_file(checkpoint, name + ".safetensors", state_of(*module));
  }
  load_file(checkpoint, kOptimizerFile, optimizer_state());
  for (size_t phase = 0; phase < optimizers_.size(); ++phase) strategy_.updated(phase);

  const Json values = checkpoint::read_state(checkpoint);
  try {
    const auto& scalers = values.get_array("scalers").items;
    require(scalers.size() == scalers_.size(), ErrorCode::kDataCorrupt, "'scalers' has ",
            scalers.size(), " items, expected ", scalers_.size());
    for (size_t i = 0; i < scalers.size(); ++i) scalers_[i]->load_state(scalers[i]);
    task_.seek(own_position(values.get_object("data")));
    step_ = values.get_int("step");
  } catch (Error& error) {
    error.add_context(checkpoint.path + "/state.json");
    throw;
  }
}

}  // namespace vgen::train
