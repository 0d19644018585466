// `vgen train` as several processes that meet over TCP: equal losses, and what goes wrong.

#include <signal.h>

#include <catch2/catch.hpp>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <memory>
#include <thread>

#include "support/process.h"
#include "support/support.h"
#include "train_runs.h"
#include "vgen/core/strings.h"
#include "vgen/io/state_dict.h"

namespace vgen {
namespace {

using Catch::Contains;
using test::OneRank;
using test::Ranks;
using test::step_folder;
using test::TempDir;
using test::train_arguments;
using test::wait_for_step;
namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;
using Texts = std::vector<std::string>;

/// The losses of one process.
std::map<int64_t, double> train_alone(const std::string& run_dir, int64_t steps) {
  const auto result = test::run_vgen(test::train_arguments(run_dir, steps, "none"));
  CAPTURE(result.err);
  REQUIRE(result.exit_code == 0);
  return test::losses(run_dir);
}

/// Returns at the very moment that it is there, unlike test::wait_for().
bool wait_closely(const std::string& path) {
  const auto end = Clock::now() + std::chrono::seconds(60);
  while (!fs::exists(path) && Clock::now() < end) {
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
  return fs::exists(path);
}

void check_equal(const io::StateDict& found, const io::StateDict& expected) {
  REQUIRE(found.tensors.size() == expected.tensors.size());
  for (const auto& [name, array] : expected.tensors) {
    CAPTURE(name);
    const io::Array* other = found.find(name);
    REQUIRE(other != nullptr);
    REQUIRE(other->shape == array.shape);
    double worst = 0;
    for (size_t i = 0; i < array.as<float>().size(); ++i) {
      worst = std::max<double>(worst, std::abs(array.as<float>()[i] - other->as<float>()[i]));
    }
    CHECK(worst < 1e-3);  // Adam makes steps of rounding noise where the gradient is zero
  }
}

/// Rank 1 is killed in the middle of a step; started again, the run ends as that of one process.
void check_killed_run(const TempDir& dir, const std::string& strategy) {
  const auto expected = train_alone(dir / "one", 24);
  REQUIRE(expected.size() == 24);
  const std::string run = dir / "r";
  const auto arguments = train_arguments(run, 24, strategy, {"checkpoint.every=12"});
  {
    Ranks ranks(2, 2, arguments);
    REQUIRE(wait_for_step(run, 14));
    ranks[1].signal(SIGKILL);
    const auto begin = Clock::now();
    const auto results = ranks.wait();
    CHECK(Clock::now() - begin < std::chrono::seconds(30));
    CAPTURE(results[0].err);
    CHECK(results[0].exit_code == 1);
    CHECK_THAT(results[0].err, Contains("no word from rank 1 ("));
    CHECK_THAT(test::read_file(run + "/log.txt"), Contains("no word from rank 1 ("));
  }
  CHECK(test::losses(run).rbegin()->first >= 14);
  Ranks(2, 2, arguments).finish();
  CHECK_THAT(test::read_file(run + "/log.txt"), Contains("going on after step 12 from "));
  test::check_losses(test::losses(run), expected);
  const std::string metrics = test::read_file(run + "/metrics.jsonl");
  for (const std::string name : {"comm_wait_share", "comm_mb_per_step", "memory_mb",
                                 "comm_wait_share_rank1", "memory_mb_rank1"}) {
    CHECK_THAT(metrics, Contains(str_cat("\"train/", name, "\":")));
    CHECK_THAT(metrics, !Contains(str_cat("\"train/", name, "\":0,")));
  }
}

TEST_CASE("several processes: ddp, also after a kill, has the losses of one", "[apps][dist]") {
  const TempDir dir;
  check_killed_run(dir, "ddp");
}

TEST_CASE("several processes: zero1, also after a kill, has the losses of one", "[apps][dist]") {
  const TempDir dir;
  check_killed_run(dir, "zero1");
}

TEST_CASE("several processes: fsdp, also after a kill, has the losses of one", "[apps][dist]") {
  const TempDir dir;
  check_killed_run(dir, "fsdp");
}

/// "train/loss" of every step, as it is printed.
Texts printed_losses(const std::string& run) {
  Texts losses;
  for (const std::string& line : split(test::read_file(run + "/metrics.jsonl"), '\n')) {
    const size_t begin = line.find("\"train/loss\":");
    if (begin == std::string::npos) continue;
    losses.push_back(line.substr(begin, line.find_first_of(",}", begin) - begin));
  }
  return losses;
}

/// All tensors of a checkpoint: of weights, averages and optimizer, in as many files as it has.
std::map<std::string, std::string> tensor_files(const std::string& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() != ".safetensors") continue;
    files[entry.path().filename().string()] = test::read_file(entry.path().string());
  }
  return files;
}

TEST_CASE("several processes: a GPT with dropout goes on bit for bit", "[apps][dist]") {
  const std::string strategy = GENERATE("ddp", "fsdp");
  CAPTURE(strategy);
  const TempDir dir;
  test::extract_digits(dir / "codes", 20);  // five steps are an epoch
  test::write_file(
      dir / "gpt.yaml",
      str_cat("task: gpt\nglobal_batch_size: 4\nprecision: fp32\nthreads: 1\nlog_every: 1\n"
              "ema_decay: 0.5\ntensorboard: false\n"
              "model: {vocab_size: 96, block_size: 16, n_layer: 2, n_head: 2, dim: 32, "
              "multiple_of: 32, num_classes: 10, class_dropout_prob: 0.3, token_dropout_p: 0.2, "
              "resid_dropout_p: 0.2, ffn_dropout_p: 0.2}\npreview: {num_images: 0}\n"
              "optimizer: {kind: adamw, lr: 1e-2}\ncheckpoint: {every: 4}\ndata: {train: ",
              dir / "codes", "}\nparallel: {strategy: ", strategy, ", timeout_s: 60}\n"));
  const auto train = [&](const std::string& name, int64_t steps, const Texts& assignments = {}) {
    Texts arguments{"train",    dir / "gpt.yaml", "--run-dir", dir / name,
                    "--resume", "auto",           "--set",     str_cat("steps=", steps)};
    for (const std::string& assignment : assignments) {
      arguments.insert(arguments.end(), {"--set", assignment});
    }
    Ranks(2, 2, arguments).finish();
  };
  train("whole", 8);
  train("cut", 4);  // in the middle of the epoch
  train("cut", 8);
  CHECK_THAT(test::read_file(dir / "cut/log.txt"), Contains("going on after step 4 from "));
  const Texts losses = printed_losses(dir / "whole");
  CHECK(losses.size() == 8);
  CHECK(printed_losses(dir / "cut") == losses);
  const auto files = tensor_files(step_folder(dir / "whole", 8));
  CHECK(files.size() == (strategy == "fsdp" ? 6 : 3));
  CHECK((tensor_files(step_folder(dir / "cut", 8)) == files));

  // It was the dropout of layers that had to go on. The first loss has none: the head begins at 0.
  train("without", 3,
        {"model.token_dropout_p=0", "model.resid_dropout_p=0", "model.ffn_dropout_p=0"});
  const Texts others = printed_losses(dir / "without");
  REQUIRE(others.size() == 3);
  CHECK(others[0] == losses[0]);
  CHECK(others[2] != losses[2]);
}

TEST_CASE("several processes: others go on, with another number and strategy", "[apps][dist]") {
  const TempDir dir;
  const auto expected = train_alone(dir / "one", 6);
  const std::string run = dir / "r";
  Ranks(4, 4, train_arguments(run, 2, "fsdp")).finish();
  CHECK(test::run_vgen(train_arguments(run, 4, "ddp")).exit_code == 0);
  Ranks(2, 2, train_arguments(run, 6, "hsdp", {"parallel.shard_ranks=2"})).finish();
  test::check_losses(test::losses(run), expected);

  // The shards as one file, and as the official training code saves.
  const io::StateDict weights = io::load_state_dict(step_folder(dir / "one", 6));
  CHECK_FALSE(fs::exists(step_folder(run, 6) + "/model.safetensors"));
  REQUIRE(test::run_vgen({"convert", run, dir / "w.safetensors"}).exit_code == 0);
  check_equal(io::load_state_dict(dir / "w.safetensors"), weights);
  REQUIRE(test::run_vgen({"convert", run, dir / "w.pt", "--nest", "model"}).exit_code == 0);
  const io::StateDict official = io::load_state_dict(dir / "w.pt");
  CHECK(official.key == "model");
  check_equal(official, weights);
}

/// One rank is killed as soon as the folder of a checkpoint is there, which has its index last.
void check_killed_save(size_t victim, const Texts& assignments) {
  const TempDir dir;
  const auto expected = train_alone(dir / "one", 9);
  const std::string run = dir / "r";
  int64_t step = 2;
  bool was_cut = false;
  for (; !was_cut && step < 9; ++step) {
    Ranks ranks(2, 2, train_arguments(run, 9, "fsdp", assignments));
    REQUIRE(wait_closely(step_folder(run, step)));
    ranks[victim].signal(SIGKILL);
    const auto results = ranks.wait();
    CAPTURE(results[1 - victim].err);
    CHECK(results[1 - victim].exit_code == 1);
    was_cut = !fs::exists(step_folder(run, step) + "/index.json");
  }
  CHECK(was_cut);
  Ranks(2, 2, train_arguments(run, 9, "fsdp", assignments)).finish();
  test::check_losses(test::losses(run), expected);
  CHECK(fs::exists(step_folder(run, 9) + "/index.json"));
}

TEST_CASE("several processes: rank 0 is killed in the middle of a save", "[apps][dist]") {
  check_killed_save(0, {});
}

TEST_CASE("several processes: rank 1 is killed while it saves in the background", "[apps][dist]") {
  check_killed_save(1, {"checkpoint.async_save=true"});
}

TEST_CASE("several processes: damaged shards are named, the checkpoint before them is used",
          "[apps][dist]") {
  const TempDir dir;
  const std::string run = dir / "r";
  const Texts keep_all{"checkpoint.keep_last=0"};
  Ranks(2, 2, train_arguments(run, 4, "fsdp", keep_all)).finish();
  const std::string first = "/model-00001-of-00002.safetensors";
  const std::string second = "/model-00002-of-00002.safetensors";
  std::string bytes = test::read_file(step_folder(run, 4) + second);
  bytes.back() ^= 1;
  test::write_file(step_folder(run, 4) + second, bytes);
  fs::resize_file(step_folder(run, 3) + first, 1000);
  fs::remove(step_folder(run, 2) + second);

  Ranks(2, 2, train_arguments(run, 5, "fsdp", keep_all)).finish();
  const std::string log = test::read_file(run + "/log.txt");
  CHECK_THAT(log, Contains("step_0000004: not a valid checkpoint, passed over: "
                           "model-00002-of-00002.safetensors has the checksum ") &&
                      Contains("step_0000003: not a valid checkpoint, passed over: "
                               "model-00001-of-00002.safetensors has 1000 bytes, expected ") &&
                      Contains("step_0000002: not a valid checkpoint, passed over: "
                               "model-00002-of-00002.safetensors is missing") &&
                      Contains("going on after step 1 from "));
  test::check_losses(test::losses(run), train_alone(dir / "one", 5));
}

TEST_CASE("several processes: a disk of one rank that fills up costs the new checkpoint only",
          "[apps][dist]") {
  const TempDir dir;
  const std::string run = dir / "r";
  Ranks(2, 2, train_arguments(run, 2, "fsdp")).finish();
  // A file may have 100 KiB: the rank's part of the weights has more.
  const OneRank full{.shell = "ulimit -f 100; trap '' XFSZ"};
  for (const auto& result : Ranks(2, 2, train_arguments(run, 4, "fsdp"), full).wait()) {
    CAPTURE(result.err);
    CHECK(result.exit_code == 1);
    CHECK_THAT(result.err, Contains("checkpoint of step 3 not saved: rank 1 (") &&
                               Contains("model-00002-of-00002.safetensors") &&
                               Contains("File too large"));
  }
  CHECK_THAT(test::read_file(run + "/log.txt"),
             Contains("checkpoint of step 3 not saved: rank 1 ("));
  CHECK_FALSE(fs::exists(step_folder(run, 3)));
  Ranks(2, 2, train_arguments(run, 4, "fsdp")).finish();
  test::check_losses(test::losses(run), train_alone(dir / "one", 4));
}

TEST_CASE("several processes: a signal to one or to all saves and ends with 0", "[apps][dist]") {
  const bool is_for_all = GENERATE(true, false);
  const TempDir dir;
  const std::string run = dir / "r";
  Ranks ranks(2, 2, test::endless_arguments(run, "ddp"));
  REQUIRE(test::wait_for_step(run, 1));
  if (is_for_all) ranks[0].signal(SIGTERM);
  ranks[1].signal(SIGTERM);
  ranks.finish();
  test::check_saved(run);
}

TEST_CASE("several processes: a rank that stands still in a step is named after the timeout",
          "[apps][dist]") {
  const TempDir dir;
  const std::string run = dir / "r";
  Ranks ranks(2, 2, test::endless_arguments(run, "fsdp", {"parallel.timeout_s=10"}));
  REQUIRE(wait_for_step(run, 2));
  ranks[1].signal(SIGSTOP);
  const auto begin = Clock::now();
  const auto result = ranks[0].wait();
  CHECK(Clock::now() - begin < std::chrono::seconds(60));
  CAPTURE(result.err);
  CHECK(result.exit_code == 1);
  for (const std::string& text : {result.err, test::read_file(run + "/log.txt")}) {
    CHECK_THAT(text, Contains("rank 0 of 2: gathering of ") || Contains("rank 0 of 2: sum "));
    CHECK_THAT(text, Contains(" failed (") && Contains("; no word from rank 1 ("));
  }
}

/// Every one of the ranks has to fail soon, with what is wrong with one of them: `blame` is how the
/// others name it.
void check_blamed(Ranks ranks, size_t culprit, const std::string& reason,
                  const std::string& blame) {
  const auto begin = Clock::now();
  const auto results = ranks.wait();
  CHECK(Clock::now() - begin < std::chrono::seconds(60));  // they would wait for ten minutes
  for (size_t rank = 0; rank < results.size(); ++rank) {
    CAPTURE(rank, results[rank].err);
    CHECK(results[rank].exit_code == 1);
    CHECK_THAT(results[rank].err, Contains(reason));
    const std::string line = results[rank].err.substr(results[rank].err.rfind("vgen: error: "));
    if (rank != culprit) CHECK_THAT(line, Contains(str_cat("rank ", culprit, " (")));
    if (rank != culprit) CHECK_THAT(line, Contains(blame) && Contains(reason));
  }
}

TEST_CASE("several processes: the error of one reaches all, also before they have met",
          "[apps][dist]") {
  const TempDir dir;
  const std::string run = dir / "r", early = ") failed before the ranks had met: ";
  const auto arguments =
      train_arguments(run, 4, "ddp", {"parallel.timeout_s=600", "global_batch_size=6"});
  SECTION("rank 1 has no config") {
    const OneRank odd{.config = dir / "none.yaml"};
    check_blamed(Ranks(3, 3, arguments, odd), 1, "none.yaml", early);
  }
  SECTION("rank 0 has no config") {
    const OneRank odd{.rank = 0, .config = dir / "none.yaml"};
    check_blamed(Ranks(3, 3, arguments, odd), 0, "none.yaml", early);
  }
  SECTION("rank 1 has no such network interface") {
    const OneRank odd{.shell = "export GLOO_SOCKET_IFNAME=none0"};
    check_blamed(Ranks(2, 2, arguments, odd), 1, "GLOO_SOCKET_IFNAME is 'none0'", early);
  }
  SECTION("rank 1 has no data") {
    const std::string here = fs::relative(test::project_path("data/digits.tar.gz")).string();
    auto own = arguments;
    own.insert(own.end(), {"--set", str_cat("data.train.path=", here)});
    const OneRank odd{.shell = str_cat("cd ", dir.path())};
    check_blamed(Ranks(2, 2, own, odd), 1, "digits.tar.gz: ", "): ");
  }
  CHECK_FALSE(fs::exists(run + "/config.yaml"));
}

/// Every one of the ranks has to fail with all of the texts.
void check_refused(Ranks ranks, const Texts& texts) {
  for (const auto& result : ranks.wait()) {
    CAPTURE(result.err);
    CHECK(result.exit_code == 1);
    for (const std::string& text : texts) CHECK_THAT(result.err, Contains(text));
  }
}

TEST_CASE("several processes: what cannot go together is named by all", "[apps][dist]") {
  const TempDir dir;
  const std::string run = dir / "r";
  SECTION("another config") {
    const OneRank other{.assignment = "optimizer.lr=0.25"};
    check_refused(Ranks(2, 2, train_arguments(run, 4, "ddp"), other),
                  {"rank 1 (", "lr: 0.25", "rank 0"});
    CHECK_FALSE(fs::exists(run + "/config.yaml"));
  }
  SECTION("a rank that never arrives") {
    check_refused(Ranks(4, 2, train_arguments(run, 4, "ddp", {"parallel.timeout_s=5"})),
                  {"ranks 2, 3 of 4 did not arrive within 5 s"});
  }
  SECTION("rank 0 never arrives") {
    const auto begin = Clock::now();
    const std::string error =
        test::vgen_error(train_arguments(run, 4, "ddp", {"parallel.timeout_s=3"}),
                         test::rank_environment(1, 2, test::free_port()));
    CHECK(Clock::now() - begin < std::chrono::seconds(60));
    CHECK_THAT(error, Contains("rank 1 of 2 cannot meet the others at 127.0.0.1:") &&
                          Contains("; did rank 0 start, and is that its address?"));
  }
  SECTION("ranks that do not divide the batch") {
    check_refused(Ranks(3, 3, train_arguments(run, 4, "ddp")),
                  {"global_batch_size is 4, which does not divide by 3 ranks", "; 6 would"});
  }
  SECTION("no strategy") {
    check_refused(Ranks(2, 2, train_arguments(run, 4, "none")),
                  {"parallel.strategy is none, but 2 processes"});
  }
  SECTION("a strategy that is not known") {
    CHECK_THAT(test::vgen_error(train_arguments(run, 4, "fsdq")),
               Contains("parallel.strategy") && Contains("fsdq") && Contains("hsdp"));
  }
  SECTION("a checkpoint of another model") {
    Ranks(2, 2, train_arguments(run, 1, "fsdp")).finish();
    check_refused(Ranks(2, 2, train_arguments(run, 2, "fsdp", {"model.codebook_size=32"})),
                  {"step_0000001/model.safetensors: the tensors are not those of this model",
                   "do not fit: ", "[64, 8], expected [32, 8]"});
    CHECK_FALSE(fs::exists(step_folder(run, 2)));
  }
}

}  // namespace
}  // namespace vgen
