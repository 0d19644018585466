#include "vgen/train/run.h"

#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/torch.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <optional>

#include "vgen/checkpoint/run_folder.h"
#include "vgen/core/error.h"
#include "vgen/core/log.h"
#include "vgen/core/random.h"
#include "vgen/data/image.h"
#include "vgen/dist/launch.h"
#include "vgen/dist/together.h"
#include "vgen/io/atomic_file.h"
#include "vgen/io/mapped_file.h"
#include "vgen/tensor/deferred_init.h"
#include "vgen/tensor/device.h"
#include "vgen/tensor/doctor.h"
#include "vgen/tensor/tf32.h"
#include "vgen/train/matmul_peak.h"
#include "vgen/train/metrics.h"
#include "vgen/train/stop_signal.h"
#include "vgen/train/trainer.h"

namespace vgen::train {

namespace fs = std::filesystem;

namespace {

double seconds_now() {
  const auto since = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double>(since).count();
}

bool is_due(int64_t step, int64_t every, bool is_last) {
  return is_last || (every > 0 && step % every == 0);
}

RunPlan read_plan(const TrainOptions& options) {
  ConfigNode root = load_yaml(options.config);
  for (const std::string& assignment : options.overrides) apply_override(root, assignment);
  return plan_run(root);
}

std::string default_run_dir(const TrainOptions& options) {
  return "runs/" + fs::path(options.config).stem().string();
}

// "model.ch was 32, is 64" for each value that two resolved configs do not share.
void find_changes(const ConfigNode& before, const ConfigNode& now, const std::string& path,
                  std::vector<std::string>& changes) {
  if (before.kind == ConfigNode::Kind::kMap && now.kind == ConfigNode::Kind::kMap) {
    for (size_t i = 0; i < now.keys.size(); ++i) {
      const ConfigNode* old = before.find(now.keys[i]);
      const std::string name = path.empty() ? now.keys[i] : str_cat(path, ".", now.keys[i]);
      if (old != nullptr) find_changes(*old, now.values[i], name, changes);
    }
    return;
  }
  const auto text = [](const ConfigNode& node) {
    std::string yaml = dump_yaml(node);
    std::ranges::replace(yaml, '\n', ' ');
    return yaml.substr(0, yaml.find_last_not_of(' ') + 1);
  };
  if (text(before) != text(now)) {
    changes.push_back(str_cat(path, " was ", text(before), ", is ", text(now)));
  }
}

void log_config_changes(const std::string& path, const std::string& resolved) {
  std::vector<std::string> changes;
  find_changes(load_yaml(path), parse_yaml(resolved, "config"), "", changes);
  for (const std::string& change : changes) log_warning("the config changed: ", change);
}

/// The loop of one run.
class Run {
 public:
  Run(const RunPlan& plan, const checkpoint::RunFolder& folder, Trainer& trainer,
      dist::Strategy& strategy, c10::Device device)
      : config_(plan.run),
        folder_(folder),
        trainer_(trainer),
        strategy_(strategy),
        device_(device),
        is_main_(strategy.rank() == 0),
        workload_(trainer.task().workload()),
        store_(folder.path() + "/checkpoints", kept_checkpoints(plan.run), &strategy.group()) {
    if (workload_.flops_per_sample > 0) {
      peak_flops_ = config_.peak_tflops > 0
                        ? 1e12 * config_.peak_tflops
                        : measure_matmul_flops(device, parse_precision(config_.precision));
    }
  }

  /// Goes on from a checkpoint.
  void restore(const checkpoint::CheckpointInfo& checkpoint) {
    trainer_.restore(checkpoint);
    window_.load_state(checkpoint::read_state(checkpoint).get_object("window"));
    saved_step_ = trainer_.steps_done();
    log_info("going on after step ", trainer_.steps_done(), " from ", checkpoint.path);
  }

  TrainResult train() {
    const int64_t first_step = trainer_.steps_done();
    std::optional<Progress> progress;
    if (is_main_) {
      writer_.emplace(folder_.path(), config_.tensorboard, first_step);
      progress.emplace(Progress::Options{
          .label = "train", .unit = "steps", .total = trainer_.total_steps(), .start = first_step});
    }
    const StopSignal signal;
    bool is_stopped = false;
    while (trainer_.steps_done() < trainer_.total_steps() && !is_stopped) {
      step();
      is_stopped = strategy_.any_rank(signal.number() != 0);
      if (progress) progress->update(trainer_.steps_done(), headline());
      const int64_t step = trainer_.steps_done();
      const bool is_last = step == trainer_.total_steps();
      if (is_due(step, config_.log_every, is_last)) log();
      std::map<std::string, double> metrics;
      if (is_due(step, config_.validate_every, is_last)) metrics = validate();
      if (is_stopped || is_due(step, config_.checkpoint.every, is_last)) save(metrics);
      // Last: it may need the whole model where training does not, and so fail.
      if (is_due(step, config_.preview_every, is_last)) preview();
      store_.poll();
    }
    store_.finish();
    if (progress) progress->finish(headline());
    if (is_stopped && trainer_.steps_done() < trainer_.total_steps()) {
      const int number = signal.number();  // 0: the signal reached another rank
      log_info("stopped by ", number == 0 ? "another rank's signal" : sigabbrev_np(number),
               " after step ", trainer_.steps_done(),
               "; all is saved, continue with --resume auto");
    }
    return {folder_.path(),
            trainer_.steps_done(),
            trainer_.total_steps(),
            trainer_.steps_done() >= trainer_.total_steps(),
            validation_,
            strategy_.rank()};
  }

 private:
  void step() {
    if (!stretch_) {
      stretch_ = Stretch{.comm_wait_seconds = strategy_.wait_seconds(),
                         .comm_bytes = strategy_.traffic().bytes,
                         .begin = seconds_now()};
    }
    const double waited = trainer_.task().data_stats().wait_seconds;
    window_.add(trainer_.steps_done() + 1, trainer_.step());
    wait_seconds_ += trainer_.task().data_stats().wait_seconds - waited;
    ++timed_steps_;
    // On a GPU a look at the values would wait for the step: only before something else is done.
    if (device_.is_cpu()) settle();
  }

  // What comes next is no step. Waits for the steps that a GPU has still to do, which is part of
  // their time.
  void settle() {
    try {
      window_.check(/*skip_bad=*/config_.precision == "fp16");
    } catch (const Error& error) {
      std::string advice = "no checkpoint was saved yet";
      for (const auto& checkpoint : store_.list()) {
        if (!checkpoint.problem.empty()) continue;
        advice = str_cat("the last good checkpoint is ", checkpoint.path);
        break;
      }
      throw_error(error.code(), error.what(), "; ", advice,
                  "; try a lower optimizer.lr, a warm-up or precision fp32");
    }
    if (!stretch_) return;
    comm_wait_seconds_ += strategy_.wait_seconds() - stretch_->comm_wait_seconds;
    comm_bytes_ += strategy_.traffic().bytes - stretch_->comm_bytes;
    seconds_ += seconds_now() - stretch_->begin;
    stretch_.reset();
  }

  // Of the steps since the last log line.
  double step_seconds() const {
    return seconds_ + (stretch_ ? seconds_now() - stretch_->begin : 0);
  }

  std::string headline() const {
    const Metrics means = window_.num_steps() > 0 ? window_.means() : shown_;
    const std::string text = trainer_.task().headline_text(means);
    const double rate = timed_steps_ > 0 ? images_per_second() : shown_rate_;
    return str_cat(
        text, text.empty() ? "" : " | ",
        speed_text(rate, timed_steps_ > 0 ? wait_seconds_ / step_seconds() : shown_wait_));
  }

  // "118.9 images/s | MFU 34 %", or "7610 tokens/s | MFU 41 % | data wait 0 %".
  std::string speed_text(double rate, double wait_share) const {
    const std::string share = str_cat(" | MFU ", format_fixed(100 * mfu(rate), 0), " %");
    if (workload_.tokens_per_sample == 0) {
      return str_cat(format_fixed(rate, 1), " images/s",
                     workload_.flops_per_sample > 0 ? share : "");
    }
    return str_cat(format_fixed(tokens_per_second(rate), 0), " tokens/s", share, " | data wait ",
                   format_fixed(100 * wait_share, 0), " %");
  }

  double tokens_per_second(double images_per_second) const {
    return images_per_second * static_cast<double>(workload_.tokens_per_sample);
  }

  // Share of what all devices of the run can do.
  double mfu(double images_per_second) const {
    return images_per_second * workload_.flops_per_sample /
           (peak_flops_ * static_cast<double>(strategy_.world_size()));
  }

  double images_per_second() const {
    return static_cast<double>(timed_steps_ * config_.global_batch_size) / step_seconds();
  }

  void log() {
    settle();
    Metrics metrics = window_.means();
    shown_ = metrics;
    const data::LoaderStats stats = trainer_.task().data_stats();
    metrics.emplace_back("lr", trainer_.last_lr());
    metrics.emplace_back("epoch", static_cast<double>(trainer_.task().position().epoch));
    if (config_.precision == "fp16") {
      metrics.emplace_back("loss_scale", trainer_.scalers()[0]->current_scale());
      metrics.emplace_back("skipped_steps", static_cast<double>(window_.skipped()));
    }
    if (stats.broken > 0) {
      metrics.emplace_back("broken_images", static_cast<double>(stats.broken));
    }
    if (timed_steps_ > 0) {
      shown_rate_ = images_per_second();
      shown_wait_ = wait_seconds_ / seconds_;
      metrics.emplace_back("images_per_s", shown_rate_);
      if (workload_.tokens_per_sample > 0) {
        metrics.emplace_back("tokens_per_s", tokens_per_second(shown_rate_));
      }
      if (workload_.flops_per_sample > 0) metrics.emplace_back("mfu", mfu(shown_rate_));
      metrics.emplace_back("data_wait_share", shown_wait_);
    }
    add_ranks(metrics);
    if (writer_) writer_->write(trainer_.steps_done(), "train", metrics);
    window_.clear();
    seconds_ = wait_seconds_ = comm_wait_seconds_ = 0;
    comm_bytes_ = timed_steps_ = 0;
  }

  std::map<std::string, double> validate() {
    settle();
    const Trainer::Average average(trainer_);
    strategy_.begin();
    const auto metrics = [&] {
      const BlockRunnerGuard guard(strategy_.runner());
      return trainer_.task().validate();
    }();
    strategy_.end();
    if (metrics.empty()) return metrics;
    if (writer_) writer_->write(trainer_.steps_done(), "val", {metrics.begin(), metrics.end()});
    std::string text;
    for (const auto& [name, value] : metrics) {
      text += str_cat(text.empty() ? "" : ", ", name, " ", format_fixed(value, 4));
    }
    log_info("step ", trainer_.steps_done(), ": validation: ", text);
    warn_without_best(metrics);
    validation_ = metrics;
    return metrics;
  }

  void warn_without_best(const std::map<std::string, double>& metrics) {
    const checkpoint::CheckpointConfig kept = kept_checkpoints(config_);
    if (kept.keep_best == 0 || metrics.contains(kept.best_metric) || !validation_.empty()) return;
    log_warning("checkpoint.best_metric is ", kept.best_metric,
                ", which this validation does not have: no checkpoint is kept as the best; name "
                "one of those above");
  }

  void preview() {
    if (!trainer_.task().has_preview()) return;
    settle();
    const Trainer::Average average(trainer_);
    const auto whole = strategy_.whole();
    const auto picture_HW3 = is_main_ ? trainer_.task().preview() : std::nullopt;
    if (!picture_HW3) return;
    data::Image image{.width = picture_HW3->size(1), .height = picture_HW3->size(0), .rgb = {}};
    const auto* pixels = picture_HW3->const_data_ptr<uint8_t>();
    image.rgb.assign(pixels, pixels + picture_HW3->numel());
    const auto png = data::encode_png(image);
    const std::string_view bytes(reinterpret_cast<const char*>(png.data()), png.size());
    const int64_t step = trainer_.steps_done();
    io::write_file_atomically(
        str_cat(folder_.subfolder("samples"), "/", checkpoint::step_name(step), ".png"), bytes);
    writer_->image(step, "samples", bytes, image.height, image.width);
  }

  void save(const std::map<std::string, double>& metrics) {
    if (saved_step_ == trainer_.steps_done()) return;
    settle();
    checkpoint::Snapshot snapshot = trainer_.snapshot();
    snapshot.state.set("window", window_.state());
    snapshot.metrics = metrics;
    store_.save(snapshot);
    saved_step_ = trainer_.steps_done();
  }

  // What each rank has used, and where the time of its steps went that was not spent computing.
  // Collective.
  void add_ranks(Metrics& metrics) {
    const int64_t ranks = strategy_.world_size();
    const at::Tensor all_3R = at::zeros({3, ranks}, at::kDouble);
    auto values = all_3R.accessor<double, 2>();
    const int64_t own = strategy_.rank();
    values[0][own] = peak_memory_mb(device_);
    if (timed_steps_ > 0) {
      values[1][own] = comm_wait_seconds_ / seconds_;
      values[2][own] = static_cast<double>(comm_bytes_) / 1e6 / static_cast<double>(timed_steps_);
    }
    strategy_.sum_over_ranks(all_3R);
    metrics.emplace_back("memory_mb", all_3R[0].max().item<double>());
    metrics.emplace_back("comm_mb_per_step", all_3R[2].mean().item<double>());
    metrics.emplace_back("comm_wait_share", all_3R[1].mean().item<double>());
    const auto of_ranks = [&](int64_t row) {
      const double* first = all_3R.const_data_ptr<double>() + row * ranks;
      return std::vector<double>(first, first + ranks);
    };
    add_rank_values(metrics, "memory_mb", of_ranks(0));
    add_rank_values(metrics, "comm_wait_share", of_ranks(1));
  }

  const RunConfig& config_;
  const checkpoint::RunFolder& folder_;
  Trainer& trainer_;
  dist::Strategy& strategy_;
  c10::Device device_;
  bool is_main_;  ///< rank 0: it alone writes, but for its part of checkpoints
  Workload workload_;
  double peak_flops_ = 0;  ///< of one device; where the workload is known
  checkpoint::CheckpointStore store_;
  std::optional<MetricWriter> writer_;
  MetricWindow window_;
  Metrics shown_;  ///< the last logged means
  double shown_rate_ = 0, shown_wait_ = 0;
  std::map<std::string, double> validation_;  ///< the last one
  /// Steps that follow each other, all that a GPU may not have done yet: what was when they began.
  struct Stretch {
    double comm_wait_seconds = 0;
    int64_t comm_bytes = 0;
    double begin = 0;
  };
  std::optional<Stretch> stretch_;
  double seconds_ = 0, wait_seconds_ = 0;     ///< of the steps since the last log line
  double comm_wait_seconds_ = 0;              ///< the same, of this rank
  int64_t comm_bytes_ = 0, timed_steps_ = 0;  ///< the same
  int64_t saved_step_ = -1;
};

std::optional<checkpoint::CheckpointInfo> checkpoint_to_resume(const std::string& run,
                                                               dist::Group& group) {
  try {
    return checkpoint::find_checkpoint(run, group);
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kNotFound) throw;
    return std::nullopt;
  }
}

// What `init_from` names, a checkpoint in the place of a run folder. Collective.
std::string weights_to_begin_with(const std::string& path, dist::Group& group) {
  const auto found = dist::together(group, [&]() -> std::string {
    if (group.rank() != 0 || !checkpoint::is_checkpoint_path(path)) return path;
    return checkpoint::find_checkpoint(path).path;
  });
  return found[0];
}

void set_up_device(const RunConfig& config, const dist::Launch& launch, c10::Device device) {
  share_threads(static_cast<int>(config.threads), launch.local_world_size);
  if (device.is_cuda()) {
    c10::impl::VirtualGuardImpl(device.type()).setDevice(device);  // of what names no index
    allow_tf32(config.allow_tf32);
  }
}

// What all ranks have to agree on.
std::string identity_of(const RunPlan& plan, c10::Device device) {
  return str_cat(version_text(), "\non ", c10::DeviceTypeName(device.type()), "\n", plan.resolved);
}

/// Rank 0 opens the folder and chooses the checkpoint; the others follow it. Collective.
class RunPlace {
 public:
  RunPlace(const TrainOptions& options, dist::Group& group)
      : path_(options.run_dir.empty() ? default_run_dir(options) : options.run_dir) {
    const auto told = dist::together(group, [&]() -> std::string {
      if (group.rank() != 0) return "";
      folder_.emplace(path_, /*may_exist=*/options.resume == "auto");
      init_logging({.file = folder_->file("log.txt"), .rank = 0, .world_size = group.size()});
      return folder_->has_run() ? "has run" : "";
    });
    if (!folder_) folder_.emplace(path_);
    if (!told[0].empty()) checkpoint_ = checkpoint_to_resume(path_, group);
  }

  const checkpoint::RunFolder& folder() const { return *folder_; }
  const std::optional<checkpoint::CheckpointInfo>& checkpoint() const { return checkpoint_; }

 private:
  std::string path_;
  std::optional<checkpoint::RunFolder> folder_;
  std::optional<checkpoint::CheckpointInfo> checkpoint_;
};

TrainResult run_on(const TrainOptions& options, const RunPlan& plan, const dist::Launch& launch,
                   c10::Device device, dist::Strategy& strategy) {
  const auto seed = static_cast<uint64_t>(plan.run.seed);
  torch::manual_seed(Rng(seed, Purpose::kInit).derive_seed());
  const int64_t ranks = strategy.world_size();
  // What will lie in parts need never be whole in one process.
  std::optional<DeferredInit> deferred;
  if (strategy.is_sharded()) deferred.emplace();
  const auto task = plan.make_task({.device = device,
                                    .precision = parse_precision(plan.run.precision),
                                    .rank = strategy.rank(),
                                    .world_size = ranks,
                                    .micro_batch_size = micro_batch_size(plan.run, ranks),
                                    .seed = seed,
                                    .group = ranks > 1 ? &strategy.group() : nullptr});
  if (!plan.run.init_from.empty()) {
    task->init_from(weights_to_begin_with(plan.run.init_from, strategy.group()));
  }
  Trainer trainer(plan.run, *task, strategy, device);
  deferred.reset();

  // Only now is anything written: a config that cannot run leaves nothing behind.
  const RunPlace place(options, strategy.group());
  const checkpoint::RunFolder& folder = place.folder();
  const bool is_main = strategy.rank() == 0;
  if (ranks > 1) {
    log_info(ranks, " ranks, started by ", launch.launcher, ", strategy ",
             plan.run.parallel.strategy);
  }
  const std::string config_path = folder.file("config.yaml");
  if (is_main && fs::exists(config_path)) log_config_changes(config_path, plan.resolved);

  Run loop(plan, folder, trainer, strategy, device);
  if (place.checkpoint()) loop.restore(*place.checkpoint());
  if (is_main) {
    checkpoint::trim_metrics(folder.file("metrics.jsonl"), trainer.steps_done());
    io::write_file_atomically(config_path, plan.resolved);
  }
  if (trainer.steps_done() >= trainer.total_steps()) {
    log_info("nothing to do: all ", trainer.total_steps(), " steps are done");
  }
  return loop.train();
}

}  // namespace

std::string resolved_config(const TrainOptions& options) { return read_plan(options).resolved; }

TrainResult run(const TrainOptions& options) {
  const dist::Launch launch = dist::launch_from_environment();
  init_logging({.file = {}, .rank = launch.rank, .world_size = launch.world_size});
  const auto [plan, device] = dist::before_joining(launch, [&] {
    RunPlan read = read_plan(options);
    validate(read.run, launch.world_size);
    const c10::Device own =
        parse_device(device_for_local_rank(read.run.device, launch.local_rank, num_cuda_devices()));
    set_up_device(read.run, launch, own);
    return std::pair(std::move(read), own);
  });
  const auto strategy =
      dist::make_strategy(plan.run.parallel,
                          dist::Group::join(launch, identity_of(plan, device),
                                            1000 * plan.run.parallel.timeout_s, device.type()),
                          parse_precision(plan.run.precision), launch.local_world_size);
  try {
    TrainResult result = run_on(options, plan, launch, device, *strategy);
    strategy->group().barrier();  // nobody leaves while another still needs it
    return result;
  } catch (const std::exception& error) {
    // One process tells its caller alone. Of several it belongs to the log of the run which failed.
    if (launch.world_size > 1 && launch.rank == 0) log_error(error.what());
    strategy->group().report_failure(error.what());
    strategy->group().abandon();
    throw;
  }
}

}  // namespace vgen::train
