#pragma once
// Runs of `vgen train` on a config of milliseconds a step, and what came of them.

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace vgen::test {

/// A port of this host that nobody listens at now.
int64_t free_port();

/// Trains tests/apps/tiny-tokenizer.yaml with a checkpoint after each step; a run folder that has
/// some is gone on with.
std::vector<std::string> train_arguments(const std::string& run_dir, int64_t steps,
                                         const std::string& strategy);

/// train/gen_loss by step.
std::map<int64_t, double> losses(const std::string& run_dir);

/// The same steps, and losses within 1e-5 of each other.
void check_losses(const std::map<int64_t, double>& found,
                  const std::map<int64_t, double>& expected);

/// Whether it is there within a minute.
bool wait_for(const std::string& path);

}  // namespace vgen::test
