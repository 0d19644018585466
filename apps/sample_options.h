#pragma once
// Options that the commands which draw images share.

#include "vgen/eval/sample.h"

namespace CLI {
class App;
}

namespace vgen::apps {

/// The checkpoint, its config, the tokenizer.
void add_sample_model(CLI::App& command, eval::SampleConfig& model);
/// Seed, guidance, temperature, filters.
void add_sample_settings(CLI::App& command, eval::SampleSettings& settings);
/// Precision, batch, device, threads.
void add_sample_run(CLI::App& command, eval::SampleConfig& model);

}  // namespace vgen::apps
