#include "vgen/train/task.h"

#include "vgen/train/gpt_task.h"
#include "vgen/train/tokenizer_task.h"

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

RunPlan plan_run(const ConfigNode& root) {
  // A row per task. A name without one is refused by the check of the field itself.
  const ConfigNode* task = root.find("task");
  if (task != nullptr && task->scalar == "gpt") return plan<GptRunConfig, GptTask>(root);
  return plan<TokenizerRunConfig, TokenizerTask>(root);
}

}  // namespace vgen::train
