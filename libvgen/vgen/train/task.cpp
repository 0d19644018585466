#include "vgen/train/task.h"

#include "vgen/core/strings.h"
#include "vgen/train/gpt_task.h"
#include "vgen/train/tokenizer_task.h"
#include "vgen/train/var_task.h"
#include "vgen/train/var_tokenizer_task.h"

namespace vgen::train {

namespace {

template <class Config, class TaskType>
RunPlan plan(const ConfigNode& root) {
  const auto config = read_config<Config>(root);
  validate(config);
  return {config.run, dump_config(config),
          [config](const TaskContext& context) -> std::unique_ptr<Task> {
            return std::make_unique<TaskType>(config, context);
          }};
}

}  // namespace

void TaskContext::sum_over_ranks(std::vector<double>& values) const {
  if (group == nullptr) return;
  at::Tensor sums = torch::tensor(values, torch::kFloat64).to(device);
  group->all_reduce_sum(sums);
  sums = sums.cpu();
  values.assign(sums.const_data_ptr<double>(), sums.const_data_ptr<double>() + sums.numel());
}

bool TaskContext::any_rank(bool value) const {
  std::vector<double> count{value ? 1.0 : 0.0};
  sum_over_ranks(count);
  return count[0] > 0;
}

std::string Task::headline_text(const Metrics& means) const {
  std::vector<std::string> fields;
  for (const std::string& name : headline()) {
    for (const auto& [key, value] : means) {
      if (key == name) fields.push_back(str_cat(name, " ", format_fixed(value, 4)));
    }
  }
  return join(fields, " | ");
}

data::LoaderOptions loader_options(const TaskContext& context, int64_t batch_size) {
  return {.batch_size = batch_size,
          .seed = context.seed,
          .rank = context.rank,
          .world_size = context.world_size,
          .pin_memory = context.device.is_cuda()};
}

RunPlan plan_run(const ConfigNode& root) {
  // A row per task. A name without one goes to the last, whose check of the field refuses it.
  const ConfigNode* task = root.find("task");
  if (task != nullptr && task->scalar == "gpt") return plan<GptRunConfig, GptTask>(root);
  if (task != nullptr && task->scalar == "var") return plan<VarRunConfig, VarTask>(root);
  if (task != nullptr && task->scalar == "var_tokenizer") {
    return plan<VarTokenizerRunConfig, VarTokenizerTask>(root);
  }
  return plan<TokenizerRunConfig, TokenizerTask>(root);
}

}  // namespace vgen::train
