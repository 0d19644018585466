#include "vgen/train/task.h"

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
