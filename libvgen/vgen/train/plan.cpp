#include "vgen/train/plan.h"

#include <algorithm>
#include <cstdio>
#include <optional>
#include <unordered_map>

#include "vgen/checkpoint/named_tensors.h"
#include "vgen/core/error.h"
#include "vgen/infer/gpt_weights.h"
#include "vgen/io/json.h"
#include "vgen/nn/narrow.h"
#include "vgen/nn/skip_init.h"
#include "vgen/tensor/device.h"
#include "vgen/train/gpt_task.h"
#include "vgen/train/tokenizer_cost.h"
#include "vgen/train/tokenizer_task.h"
#include "vgen/train/var_task.h"
#include "vgen/train/var_tokenizer_task.h"

namespace vgen::train {

namespace {

using dist::PhaseSizes;
using io::Json;

constexpr double kGb = 1e9;
/// Of a GPU's memory: what CUDA, its libraries and NCCL take, and what is lost between blocks.
constexpr double kReservedBytes = 2e9;
constexpr double kUsableShare = 0.95;

/// Of LPIPS.
constexpr int64_t kVggParameters = 14'714'688;

constexpr const char* kStrategies[] = {"none", "ddp", "zero1", "fsdp", "hsdp"};

/// Each parameter belongs to the first block that holds it, as in Sharded.
PhaseSizes sizes_of(const Phase& phase) {
  PhaseSizes sizes{.blocks = {}, .root = {}, .is_float32 = phase.is_float32};
  sizes.blocks.resize(phase.blocks.size());
  std::unordered_map<const at::TensorImpl*, size_t> block_of;
  for (size_t i = 0; i < phase.blocks.size(); ++i) {
    for (const at::Tensor& parameter : phase.blocks[i]->parameters()) {
      block_of.emplace(parameter.unsafeGetTensorImpl(), i);
    }
  }
  for (const checkpoint::NamedTensor& item : phase.parameters) {
    const auto found = block_of.find(item.tensor.unsafeGetTensorImpl());
    auto& group = found == block_of.end() ? sizes.root : sizes.blocks[found->second];
    group.push_back(item.tensor.numel());
  }
  return sizes;
}

int64_t num_elements(const torch::nn::Module& module) {
  int64_t count = 0;
  for (const at::Tensor& parameter : module.parameters()) count += parameter.numel();
  return count;
}

// --- models ---

PaperModel gpt_on_paper(const GptRunConfig& config) {
  const gpt::GptConfig& model = config.model;
  PaperModel paper;
  paper.title = str_cat("GPT, ", model.n_layer, " blocks of width ", model.dim);
  PhaseSizes sizes;
  sizes.blocks.resize(static_cast<size_t>(model.n_layer));
  for (const auto& [name, shape] : infer::gpt_shapes(model)) {
    int64_t count = 1;
    for (const int64_t size : shape) count *= size;
    int64_t layer = -1;
    if (name.starts_with("layers.")) parse_int(split(name, '.')[1], layer);
    (layer < 0 ? sizes.root : sizes.blocks[static_cast<size_t>(layer)]).push_back(count);
  }
  paper.phases = {sizes};
  paper.workload = gpt_workload(model);
  if (!config.tokenizer.path.empty()) {
    const nn::SkipInit no_weights;
    paper.frozen_bytes = 4 * num_elements(*tokenizer::Vqgan(tokenizer::VqganConfig()));
  }
  paper.activations = [model](const ActivationSetup& setup) {
    return std::vector<Activations>{gpt_activations(model, setup)};
  };
  return paper;
}

PaperModel var_on_paper(const VarRunConfig& config) {
  const var::VarConfig& model = config.model;
  const var::VarTransformer transformer(model, torch::kMeta);
  const Phase phase{"", config.optimizer, checkpoint::named_parameters(*transformer),
                    transformer->blocks()};
  PaperModel paper;
  paper.title = str_cat("VAR, ", model.depth, " blocks of width ", model.width());
  paper.phases = {sizes_of(phase)};
  paper.workload = var_workload(model, phase.parameters);
  const nn::SkipInit no_weights;
  tokenizer::MultiScaleVqvaeConfig vqvae;
  vqvae.patch_nums = model.patch_nums;
  paper.frozen_bytes = 4 * num_elements(*tokenizer::MultiScaleVqvae(vqvae));
  if (config.data.train.empty()) {
    paper.remark = "the tokenizer that encodes images on the fly is counted with its weights alone";
  }
  paper.activations = [model](const ActivationSetup& setup) {
    return std::vector<Activations>{var_activations(model, setup)};
  };
  return paper;
}

/// A task with models alone, whose weights nobody will look at.
template <class TaskType, class Config>
std::unique_ptr<Task> empty_task(Config config) {
  const nn::SkipInit no_weights;
  config.loss.perceptual_weight = 0;  // its weights are in a file
  return std::make_unique<TaskType>(config, TaskContext{.is_training = false});
}

template <class TaskType, class Config>
PaperModel tokenizer_on_paper(const Config& config, const std::string& title) {
  PaperModel paper;
  paper.title = title;
  const auto task = empty_task<TaskType>(config);
  for (const Phase& phase : task->phases()) paper.phases.push_back(sizes_of(phase));
  const TokenizerShape shape = shape_of(config.model);
  paper.workload = tokenizer_workload(config, shape);
  if (config.loss.perceptual_weight > 0) paper.frozen_bytes = 4 * kVggParameters;
  if (config.loss.disc_weight > 0 && config.loss.disc_type == "stylegan") {
    paper.remark =
        "StyleGAN's discriminator is counted with its weights and operations, not with its "
        "activations";
  }
  paper.activations = [shape, loss = config.loss,
                       side = config.data.image_size](const ActivationSetup& setup) {
    return tokenizer_activations(shape, loss, side, setup);
  };
  return paper;
}

// --- rows ---

int64_t dtype_bytes(const std::string& name) { return name == "fp32" ? 4 : 2; }

dist::PlanSetup setup_of(const std::string& strategy, const RunConfig& run, int64_t gpus,
                         int64_t shard_ranks) {
  const bool is_alone = strategy == "none";
  const std::string& dtype =
      run.parallel.param_dtype == "auto" ? run.precision : run.parallel.param_dtype;
  return {.strategy = strategy,
          .ranks = is_alone ? 1 : gpus,
          .shard_ranks = shard_ranks,
          .param_bytes = dtype_bytes(dtype),
          .reduce_bytes = dtype_bytes(run.parallel.reduce_dtype),
          .prefetch_blocks = run.parallel.prefetch_blocks,
          // Alone, one GPU takes the micro-batches of all.
          .grad_accum_steps = run.grad_accum_steps * (is_alone ? gpus : 1),
          .bucket_bytes = run.parallel.bucket_mb * 1024 * 1024};
}

PlanRow plan_row(const PaperModel& model, const dist::PlanSetup& setup, bool is_checkpointed,
                 const PlanReport& report) {
  PlanRow row{.strategy = setup.strategy,
              .is_checkpointed = is_checkpointed,
              .ranks = setup.ranks,
              .memory = dist::plan_memory(model.phases, setup)};
  const bool has_narrow_parameters = setup.param_bytes < 4;
  const bool is_cpu = std::string_view(report.gpu.name) == "cpu";
  const ActivationSetup activations{
      .batch = report.micro_batch_size,
      .compute_bytes = dtype_bytes(report.precision),
      .has_narrow_blocks = setup.is_gathering() && has_narrow_parameters,
      .is_cpu = is_cpu,
      .is_widened = is_cpu && !nn::has_fast_products(parse_precision(report.precision)),
      .micro_batches = setup.grad_accum_steps,
      .is_batch_shared = setup.ranks >= 2};
  const std::vector<Activations> kept = model.activations(activations);
  const std::vector<dist::PassMemory> passes = dist::plan_passes(model.phases, setup);
  int64_t in_passes = 0;
  for (size_t phase = 0; phase < passes.size(); ++phase) {
    row.activations = std::max(row.activations, kept.at(phase).peak(is_checkpointed));
    in_passes = std::max(in_passes, kept[phase].peak_with(passes[phase], is_checkpointed));
  }
  row.total = row.memory.parameters + row.memory.optimizer + row.memory.averages +
              model.frozen_bytes + in_passes;
  row.is_fitting = static_cast<double>(row.total) <= report.usable_bytes;

  const double samples =
      static_cast<double>(report.global_batch_size) / static_cast<double>(setup.ranks);
  const double flops = samples * model.workload.flops_per_sample;  // a third of them forward
  const dist::ComputeLoad load{
      .forward_flops = flops / 3,
      .backward_flops = flops * (is_checkpointed ? 3 : 2) / 3,
      // Adam reads and writes a weight and two averages and reads a gradient: 28 bytes a weight,
      // which has 8 bytes of averages. EMA: 12 bytes, of which 4 stay.
      .update_bytes = 3.5 * static_cast<double>(row.memory.optimizer) +
                      3.0 * static_cast<double>(row.memory.averages),
      .flops_per_second = report.mfu * 1e12 * report.peak_tflops};
  const auto transfers = dist::plan_transfers(model.phases, setup);
  for (const dist::Transfer& transfer : transfers) row.sent_bytes += transfer.sent_bytes(setup);
  row.time = dist::plan_time(transfers, setup, load, report.gpu, report.gpus_per_node);
  return row;
}

// "3.10 billion", "343 million", "0.29 million".
std::string count_text(int64_t count) {
  const auto value = static_cast<double>(count);
  if (value >= 1e9) return format_fixed(value / 1e9, 2) + " billion";
  return format_fixed(value / 1e6, value < 1e7 ? 2 : 0) + " million";
}

std::string gb(double bytes) { return format_fixed(bytes / kGb, bytes < 1e10 ? 2 : 1); }
std::string gb(int64_t bytes) { return gb(static_cast<double>(bytes)); }

std::string row_text(const PlanRow& row, int64_t frozen_bytes) {
  const dist::PlannedMemory& memory = row.memory;
  char line[256];
  std::snprintf(line, sizeof(line),
                "%-8s  %5s  %6s  %6s  %6s  %6s  %8s  %7s  %6s  %6s  %6s  %4s  %7s  %9.3f  %8.3f  "
                "%7.3f  %9.3f  %7.3f\n",
                row.strategy.c_str(), row.is_checkpointed ? "yes" : "no",
                gb(memory.parameters).c_str(), gb(memory.gradients).c_str(),
                gb(memory.optimizer).c_str(), gb(memory.averages).c_str(),
                gb(memory.gathered).c_str(), gb(memory.buffers).c_str(), gb(frozen_bytes).c_str(),
                gb(row.activations).c_str(), gb(row.total).c_str(), row.is_fitting ? "yes" : "no",
                gb(row.sent_bytes).c_str(), row.time.compute, row.time.update,
                row.time.communication, row.time.exposed, row.time.step());
  return line;
}

std::string advice(const PlanReport& report) {
  const PlanRow* best = nullptr;
  for (const PlanRow& row : report.rows) {
    const bool is_better = best == nullptr || row.time.step() < best->time.step();
    if (row.is_fitting && is_better) best = &row;
  }
  if (best == nullptr) {
    return "nothing fits: raise grad_accum_steps for smaller micro-batches, take more GPUs or "
           "larger ones\n";
  }
  return str_cat("fits and is fastest: ", best->strategy,
                 best->is_checkpointed ? " with activation checkpointing" : "", ", ",
                 gb(best->total), " GB, ", format_fixed(best->time.step(), 3), " s a step\n");
}

}  // namespace

int64_t PaperModel::num_elements() const {
  int64_t count = 0;
  for (const PhaseSizes& phase : phases) count += phase.num_elements();
  return count;
}

PaperModel model_on_paper(const ConfigNode& root) {
  const std::string task = plan_run(root).run.task;
  if (task == "gpt") return gpt_on_paper(read_config<GptRunConfig>(root));
  if (task == "var") return var_on_paper(read_config<VarRunConfig>(root));
  if (task == "var_tokenizer") {
    const auto config = read_config<VarTokenizerRunConfig>(root);
    return tokenizer_on_paper<VarTokenizerTask>(
        config, str_cat("multi-scale VQVAE of base width ", config.model.ch));
  }
  const auto config = read_config<TokenizerRunConfig>(root);
  return tokenizer_on_paper<TokenizerTask>(config,
                                           str_cat("VQGAN of base width ", config.model.ch));
}

PlanReport plan_training(const PlanOptions& options) {
  const dist::Gpu& gpu = dist::find_gpu(options.gpu);
  require(options.gpus >= 1 && options.gpus_per_node >= 1, ErrorCode::kInvalidArgument,
          "a plan for ", options.gpus, " GPUs, ", options.gpus_per_node,
          " in a node: expected at least 1 of each");
  require(options.mfu > 0 && options.mfu <= 1, ErrorCode::kInvalidArgument, "mfu is ", options.mfu,
          ", expected above 0, up to 1");
  ConfigNode root = load_yaml(options.config);
  for (const std::string& assignment : options.overrides) apply_override(root, assignment);
  const RunConfig run = plan_run(root).run;
  validate(run, options.gpus);
  PaperModel model = model_on_paper(root);
  if (run.ema_decay > 0) model.phases.front().is_averaged = true;

  PlanReport report;
  report.model = model.title;
  report.remark = model.remark;
  report.precision = run.precision;
  report.num_parameters = model.num_elements();
  report.frozen_bytes = model.frozen_bytes;
  report.gpus = options.gpus;
  report.gpus_per_node = options.gpus_per_node;
  report.global_batch_size = run.global_batch_size;
  report.grad_accum_steps = run.grad_accum_steps;
  report.micro_batch_size = micro_batch_size(run, options.gpus);
  report.shard_ranks = run.parallel.shard_ranks > 0 ? run.parallel.shard_ranks
                                                    : std::min(options.gpus, options.gpus_per_node);
  report.gpu = gpu;
  report.mfu = options.mfu;
  report.peak_tflops = run.precision != "fp32" ? gpu.bf16_tflops
                       : run.allow_tf32        ? gpu.tf32_tflops
                                               : gpu.fp32_tflops;
  report.usable_bytes = kUsableShare * kGb * gpu.memory_gb - kReservedBytes;
  for (const char* strategy : kStrategies) {
    const std::string name = strategy;
    if (options.gpus == 1 && name != "none") continue;
    if (name == "hsdp" && options.gpus % report.shard_ranks != 0) continue;
    const auto setup = setup_of(name, run, options.gpus, report.shard_ranks);
    for (const bool is_checkpointed : {false, true}) {
      report.rows.push_back(plan_row(model, setup, is_checkpointed, report));
    }
  }
  return report;
}

std::string format_report(const PlanReport& report) {
  const dist::Gpu& gpu = report.gpu;
  std::string out = str_cat(
      report.model, ", ", count_text(report.num_parameters), " parameters, ", report.precision,
      "; ", report.global_batch_size, " samples a step = ", report.gpus, " ranks x ",
      report.grad_accum_steps, " micro-batches of ", report.micro_batch_size, "\n", report.gpus,
      " x ", gpu.title, ", ", report.gpus_per_node, " in a node; ", gpu.links, "; ",
      gb(report.usable_bytes), " of ", format_fixed(gpu.memory_gb, 0),
      " GB usable\nGB (10^9 bytes) of a rank at most; GB that a rank sends and seconds, of a "
      "step\n\n",
      "strategy  ckpt.  params   grads    Adam     EMA  gathered  buffers  frozen  activ.   total  "
      "fits  sent GB  compute s  update s  comm. s  exposed s   step s\n");
  for (const PlanRow& row : report.rows) out += row_text(row, report.frozen_bytes);
  out += "\n";
  out += advice(report);
  out += str_cat(
      "Assumed: passes reach ", format_fixed(100 * report.mfu, 0), " % of ",
      format_fixed(report.peak_tflops, 1), " TFLOP/s (--mfu), links ",
      format_fixed(100 * dist::kLinkEfficiency, 0),
      " % of their data sheets, without latency; communication of blocks hides behind the pass "
      "that it belongs to, that of what lies outside of blocks and of the first block does not, "
      "nor do zero1's gathers; the optimizer runs at the speed of the memory. The total is the "
      "most at a time: gradients and what is gathered for the backward pass come as activations "
      "go.\n");
  if (report.gpus > 1) {
    out += str_cat("none: one GPU takes the whole batch, in ",
                   report.gpus * report.grad_accum_steps, " micro-batches. ");
    out += report.gpus % report.shard_ranks == 0
               ? str_cat("hsdp: groups of ", report.shard_ranks, " ranks.\n")
               : str_cat("hsdp: left out, ", report.gpus, " ranks are no groups of ",
                         report.shard_ranks, " (parallel.shard_ranks, or else --gpus-per-node); ",
                         "--set parallel.shard_ranks=N takes a divisor of ", report.gpus, "\n");
  }
  if (!report.remark.empty()) out += str_cat("Note: ", report.remark, ".\n");
  return out;
}

std::string report_json(const PlanReport& report) {
  Json json = Json::object();
  json.set("model", Json::string(report.model));
  json.set("parameters", Json::number(report.num_parameters));
  json.set("precision", Json::string(report.precision));
  json.set("gpu", Json::string(report.gpu.name));
  json.set("gpus", Json::number(report.gpus));
  json.set("gpus_per_node", Json::number(report.gpus_per_node));
  json.set("global_batch_size", Json::number(report.global_batch_size));
  json.set("grad_accum_steps", Json::number(report.grad_accum_steps));
  json.set("micro_batch_size", Json::number(report.micro_batch_size));
  json.set("shard_ranks", Json::number(report.shard_ranks));
  json.set("mfu", Json::number(report.mfu));
  json.set("peak_tflops", Json::number(report.peak_tflops));
  json.set("usable_bytes", Json::number(report.usable_bytes));
  Json rows = Json::array();
  for (const PlanRow& row : report.rows) {
    Json item = Json::object();
    item.set("strategy", Json::string(row.strategy));
    item.set("activation_checkpointing", Json::boolean(row.is_checkpointed));
    item.set("ranks", Json::number(row.ranks));
    item.set("parameter_bytes", Json::number(row.memory.parameters));
    item.set("gradient_bytes", Json::number(row.memory.gradients));
    item.set("optimizer_bytes", Json::number(row.memory.optimizer));
    item.set("ema_bytes", Json::number(row.memory.averages));
    item.set("gathered_bytes", Json::number(row.memory.gathered));
    item.set("buffer_bytes", Json::number(row.memory.buffers));
    item.set("frozen_bytes", Json::number(report.frozen_bytes));
    item.set("activation_bytes", Json::number(row.activations));
    item.set("total_bytes", Json::number(row.total));
    item.set("fits", Json::boolean(row.is_fitting));
    item.set("sent_bytes", Json::number(row.sent_bytes));
    item.set("compute_seconds", Json::number(row.time.compute));
    item.set("update_seconds", Json::number(row.time.update));
    item.set("communication_seconds", Json::number(row.time.communication));
    item.set("exposed_seconds", Json::number(row.time.exposed));
    item.set("step_seconds", Json::number(row.time.step()));
    rows.add(std::move(item));
  }
  json.set("rows", std::move(rows));
  return io::dump_json(json, 1) + "\n";
}

std::string format_gpus() {
  std::string out =
      "name       GB  bf16 TFLOP/s   TF32  fp32  memory GB/s  node GB/s  network GB/s\n";
  for (const dist::Gpu& gpu : dist::known_gpus()) {
    char line[256];
    std::snprintf(line, sizeof(line),
                  "%-8s  %3.0f  %12.1f  %5.1f  %4.1f  %11.0f  %9.0f  %12.2f  %s; %s\n", gpu.name,
                  gpu.memory_gb, gpu.bf16_tflops, gpu.tf32_tflops, gpu.fp32_tflops, gpu.memory_gb_s,
                  gpu.intra_gb_s, gpu.inter_gb_s, gpu.title, gpu.links);
    out += line;
  }
  return out + "Links: one direction, of one GPU.\n";
}

}  // namespace vgen::train
