#pragma once
// Options that every `vgen bench` command has.

#include <CLI/CLI.hpp>
#include <cstdio>

#include "device_option.h"

namespace vgen::apps {

/// `config`: a bench config with `device` and `threads`.
template <class Config>
void add_machine_options(CLI::App& command, Config& config, bool& is_json) {
  add_device_options(command, config.device);
  command.add_option("--threads", config.threads, "0 = one per core")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command.add_flag("--json", is_json, "Machine-readable");
}

/// `config`: one with `precisions` and `batches`, of a model that draws.
template <class Config>
void add_drawing_options(CLI::App& command, Config& config) {
  command.add_option("--precision", config.precisions, "What weights are stored in")
      ->delimiter(',')
      ->check(CLI::IsMember({"fp32", "bf16", "int8"}))
      ->capture_default_str();
  command.add_option("--batch", config.batches, "Images at once")
      ->delimiter(',')
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
}

/// Prints as JSON or as a table.
template <class Report>
void print_report(const Report& report, bool is_json) {
  std::fputs((is_json ? report_json(report) : format_report(report)).c_str(), stdout);
}

}  // namespace vgen::apps
