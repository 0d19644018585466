#include "vgen/tensor/doctor.h"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "commands.h"
#include "vgen/core/error.h"
#include "vgen/infer/drawing_path.h"
#include "vgen/train/plan.h"

namespace vgen::apps {

namespace {

struct Options {
  std::string folder = ".";
  train::PlanOptions plan;
  bool is_json = false;
};

void print(const std::string& text) { std::fputs(text.c_str(), stdout); }

void print_diagnosis(const Options& options) {
  DoctorReport report = diagnose(options.folder);
  report.sections.push_back({"in use", {{"drawing", infer::drawing_path()}}});
  print(options.is_json ? report_json(report) : format_report(report));
}

void print_plan(const Options& options) {
  const train::PlanReport report = train::plan_training(options.plan);
  print(options.is_json ? report_json(report) : format_report(report));
}

}  // namespace

void add_doctor(CLI::App& app) {
  auto options = std::make_shared<Options>();
  train::PlanOptions& plan = options->plan;
  auto* command = app.add_subcommand(
      "doctor", "Print versions, processor, devices and problems; or plan a training run on paper");
  command->add_option("--folder", options->folder, "Where runs would be written")
      ->capture_default_str();
  auto* config = command->add_option(
      "--plan", plan.config,
      "YAML file of a training run: memory, communication and time of a step under every strategy");
  command->add_option("--gpus", plan.gpus, "Of the plan, all nodes together")
      ->check(CLI::Range(1, 65536))
      ->needs(config)
      ->capture_default_str();
  auto* gpu = command->add_option("--gpu", plan.gpu, "Of the plan; `list` shows what is known")
                  ->capture_default_str();
  command->add_option("--gpus-per-node", plan.gpus_per_node, "Of the plan")
      ->check(CLI::Range(1, 1024))
      ->needs(config)
      ->capture_default_str();
  command->add_option("--mfu", plan.mfu, "Share of a GPU's peak that is assumed to be reached")
      ->needs(config)
      ->capture_default_str();
  command
      ->add_option("--set", plan.overrides,
                   "Override a value of the plan's config: --set global_batch_size=512; may be "
                   "repeated")
      ->allow_extra_args(false)
      ->needs(config);
  command->add_flag("--json", options->is_json, "Machine-readable");
  command->footer(
      "Examples:\n"
      "  vgen doctor --folder /data/runs\n"
      "  vgen doctor --plan configs/gpt/3b-384.yaml --gpus 16 --gpu h100 --gpus-per-node 8\n"
      "  vgen doctor --gpu list\n");
  command->callback([options, gpu] {
    if (gpu->count() > 0 && options->plan.gpu == "list") {
      print(train::format_gpus());
    } else if (!options->plan.config.empty()) {
      print_plan(*options);
    } else {
      require(gpu->count() == 0, ErrorCode::kInvalidArgument, "--gpu ", options->plan.gpu,
              " is for a plan: add --plan CONFIG; --gpu list shows what is known");
      print_diagnosis(*options);
    }
  });
}

}  // namespace vgen::apps
