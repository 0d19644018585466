#include "vgen/tensor/doctor.h"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "commands.h"
#include "vgen/infer/drawing_path.h"

namespace vgen::apps {

namespace {

struct Options {
  std::string folder = ".";
  bool is_json = false;
};

void print(const Options& options) {
  DoctorReport report = diagnose(options.folder);
  report.sections.push_back({"in use", {{"drawing", infer::drawing_path()}}});
  std::fputs((options.is_json ? report_json(report) : format_report(report)).c_str(), stdout);
}

}  // namespace

void add_doctor(CLI::App& app) {
  auto options = std::make_shared<Options>();
  auto* command = app.add_subcommand("doctor", "Print versions, processor, devices and problems");
  command->add_option("--folder", options->folder, "Where runs would be written")
      ->capture_default_str();
  command->add_flag("--json", options->is_json, "Machine-readable");
  command->footer("Example:\n  vgen doctor --folder /data/runs\n");
  command->callback([options] { print(*options); });
}

}  // namespace vgen::apps
