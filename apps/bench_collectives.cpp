#include <cstdio>
#include <memory>

#include "bench_options.h"
#include "commands.h"
#include "vgen/bench/collectives_bench.h"
#include "vgen/core/strings.h"

namespace vgen::apps {

namespace {

struct Options {
  bench::CollectivesBenchConfig config;
  std::vector<int64_t> ranks;
  bool is_json = false;
};

template <class Item>
std::string list_of(const std::vector<Item>& items) {
  std::vector<std::string> texts;
  for (const Item& item : items) texts.push_back(str_cat(item));
  return join(texts, ",");
}

/// The command line of one rank: all but --ranks.
std::vector<std::string> rank_arguments(const Options& options) {
  const bench::CollectivesBenchConfig& config = options.config;
  std::vector<std::string> words{"bench",        "collectives",
                                 "--collective", list_of(config.collectives),
                                 "--size-kib",   list_of(config.sizes_kib),
                                 "--dtype",      config.dtype,
                                 "--repeats",    str_cat(config.repeats),
                                 "--timeout",    str_cat(config.timeout_s),
                                 "--device",     config.device,
                                 "--threads",    str_cat(config.threads)};
  if (options.is_json) words.emplace_back("--json");
  return words;
}

/// One table, or one item of a JSON list, for each number of ranks.
void run_sweep(const Options& options) {
  const std::vector<std::string> arguments = rank_arguments(options);
  for (size_t i = 0; i < options.ranks.size(); ++i) {
    if (options.is_json) std::fputs(i == 0 ? "[\n" : ",\n", stdout);
    if (!options.is_json && i > 0) std::fputs("\n", stdout);
    bench::run_local_ranks(options.ranks[i], arguments);
  }
  if (options.is_json) std::fputs("]\n", stdout);
}

}  // namespace

void add_bench_collectives(CLI::App& bench) {
  auto options = std::make_shared<Options>();
  bench::CollectivesBenchConfig& config = options->config;
  auto* command = bench.add_subcommand(
      "collectives", "Bandwidth between ranks: all-gather, reduce-scatter, all-reduce");
  command->alias("--collectives");
  command
      ->add_option("--ranks", options->ranks,
                   "Start so many processes on this machine, one number after the other; without "
                   "it the ranks of torchrun, mpirun or srun measure")
      ->delimiter(',')
      ->check(CLI::Range(2, 1024));
  command->add_option("--collective", config.collectives, "all_gather, reduce_scatter, all_reduce")
      ->delimiter(',')
      ->check(CLI::IsMember({"all_gather", "reduce_scatter", "all_reduce"}))
      ->capture_default_str();
  command->add_option("--size-kib", config.sizes_kib, "Sizes of the whole, KiB")
      ->delimiter(',')
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--dtype", config.dtype, "Of the elements: fp32, bf16, fp16")
      ->check(CLI::IsMember({"fp32", "bf16", "fp16"}))
      ->capture_default_str();
  command->add_option("--repeats", config.repeats, "Timed runs of each case; the median counts")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--timeout", config.timeout_s, "Seconds for a rank to join, and for a case")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  add_machine_options(*command, config, options->is_json);
  command->footer(
      "Bus bandwidth: bytes * (n - 1) / n / time, twice that for all-reduce.\n"
      "Examples:\n"
      "  vgen bench collectives --ranks 2,3,4\n"
      "  torchrun --standalone --no-python --nproc-per-node 8 vgen bench collectives --json\n");
  command->callback([options] {
    if (!options->ranks.empty()) return run_sweep(*options);
    const auto report = bench::bench_collectives(options->config);
    if (report.rank == 0) print_report(report, options->is_json);
  });
}

}  // namespace vgen::apps
