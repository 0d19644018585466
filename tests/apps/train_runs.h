#pragma once
// Runs of `vgen train` on a config of milliseconds a step, and what came of them.

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "support/process.h"

namespace vgen::test {

/// A port of this host that nobody listens at now.
int64_t free_port();

/// Trains tests/apps/tiny-tokenizer.yaml with a checkpoint after each step; a run folder that has
/// some is gone on with. `assignments` of the config come after.
std::vector<std::string> train_arguments(const std::string& run_dir, int64_t steps,
                                         const std::string& strategy,
                                         const std::vector<std::string>& assignments = {});

/// The same for a run that a signal has to end, with no checkpoint before.
std::vector<std::string> endless_arguments(const std::string& run_dir, const std::string& strategy,
                                           std::vector<std::string> assignments = {});

/// A run that a signal has ended: it says that all is saved, and it is.
void check_saved(const std::string& run_dir);

/// Makes codes of so many digits, 16 of 96 each, and mirrored: for a GPT.
void extract_digits(const std::string& codes_dir, int64_t num_images);

/// What one rank has of its own.
struct OneRank {
  size_t rank = 1;
  std::string config = {};      ///< instead of the file that the others have
  std::string assignment = {};  ///< of its config
  std::string shell = {};       ///< what bash does before it becomes the rank
};

/// What a launcher tells a rank.
std::vector<std::string> rank_environment(size_t rank, int64_t world_size, int64_t port);

/// Processes that know each other as a launcher tells them.
class Ranks {
 public:
  Ranks(int64_t world_size, size_t started, const std::vector<std::string>& arguments,
        const OneRank& odd = {});

  Process& operator[](size_t rank) { return *processes_[rank]; }
  std::vector<ProcessResult> wait();
  /// Waits for their ends, which have to be good ones.
  void finish();

 private:
  std::vector<std::unique_ptr<Process>> processes_;
};

/// The folder of a checkpoint below step 10.
std::string step_folder(const std::string& run_dir, int64_t step);

/// A metric by step.
std::map<int64_t, double> metric(const std::string& run_dir, const std::string& name);

/// train/gen_loss by step.
std::map<int64_t, double> losses(const std::string& run_dir);

/// The same steps, and losses within 1e-5 of each other.
void check_losses(const std::map<int64_t, double>& found,
                  const std::map<int64_t, double>& expected);

/// Whether it is there within a minute.
bool wait_for(const std::string& path);

/// Whether that step is logged within a minute.
bool wait_for_step(const std::string& run_dir, int64_t step);

}  // namespace vgen::test
