// `vgen train` under the launchers of clusters. What needs something that is not here says so and
// counts as skipped (cmake/VgenTests.cmake).

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <sstream>

#include "support/process.h"
#include "support/support.h"
#include "train_runs.h"
#include "vgen/core/strings.h"

namespace vgen {
namespace {

using Catch::Contains;
using test::TempDir;
namespace fs = std::filesystem;
using Texts = std::vector<std::string>;

void skip(const std::string& why) { std::cout << "skipped here: " << why << std::endl; }

bool has_program(const std::string& name) {
  return test::run_process("sh", {"-c", str_cat("command -v ", name)}).exit_code == 0;
}

/// Empty where scripts/setup.sh has not made the environment.
std::string torchrun() {
  const std::string path = test::project_path(".venv/bin/torchrun");
  return fs::exists(path) ? path : "";
}

Texts joined(Texts first, const Texts& second) {
  first.insert(first.end(), second.begin(), second.end());
  return first;
}

/// What torchrun takes before the program of each rank.
Texts torchrun_arguments(const Texts& options, const Texts& arguments) {
  return joined(joined({"--no-python"}, options), joined({test::vgen_executable()}, arguments));
}

void check_done(const test::ProcessResult& result) {
  CAPTURE(result.out, result.err);
  CHECK(result.exit_code == 0);
}

/// Of processes that run at the same time.
void check_all_done(const std::vector<std::unique_ptr<test::Process>>& processes) {
  std::vector<test::ProcessResult> results;
  for (const auto& process : processes) results.push_back(process->wait());
  for (const auto& result : results) check_done(result);
}

std::string log_of(const std::string& run) { return test::read_file(run + "/log.txt"); }

/// The child of `parent` whose environment has RANK=`rank`; -1: there is none.
pid_t find_rank(pid_t parent, int64_t rank) {
  for (const auto& entry : fs::directory_iterator("/proc")) {
    int64_t pid = 0;
    if (!parse_int(entry.path().filename().string(), pid)) continue;
    // A process may end while it is looked at: then there is nothing to read.
    std::ifstream stat(entry.path() / "stat"), environment(entry.path() / "environ");
    std::string text{std::istreambuf_iterator<char>(stat), {}};
    std::istringstream fields(text.substr(std::min(text.size(), text.rfind(')') + 1)));
    std::string state;
    pid_t of = 0;
    fields >> state >> of;
    if (of != parent) continue;
    text.assign(std::istreambuf_iterator<char>(environment), {});
    const std::string variable = str_cat("RANK=", rank) + '\0';
    if (text.starts_with(variable) || text.find('\0' + variable) != text.npos) {
      return static_cast<pid_t>(pid);
    }
  }
  return -1;
}

TEST_CASE("launchers: torchrun starts a run again whose rank was killed", "[apps][dist]") {
  if (torchrun().empty()) return skip("no .venv/bin/torchrun; scripts/setup.sh installs it");
  const TempDir dir;
  const std::string run = dir / "r";
  test::Process launcher(torchrun(), torchrun_arguments({"--standalone", "--nproc-per-node", "2",
                                                         "--max-restarts", "1"},
                                                        test::train_arguments(run, 20, "fsdp")));
  REQUIRE(test::wait_for(run + "/checkpoints/step_0000002"));
  const pid_t victim = find_rank(launcher.pid(), 1);
  REQUIRE(victim > 0);
  REQUIRE(::kill(victim, SIGKILL) == 0);
  check_done(launcher.wait());
  CHECK_THAT(log_of(run), Contains("2 ranks, started by torchrun, strategy fsdp") &&
                              Contains("going on after step"));

  check_done(test::run_vgen(test::train_arguments(dir / "one", 20, "none")));
  test::check_losses(test::losses(run), test::losses(dir / "one"));
}

TEST_CASE("launchers: a signal to torchrun saves", "[apps][dist]") {
  if (torchrun().empty()) return skip("no .venv/bin/torchrun; scripts/setup.sh installs it");
  const TempDir dir;
  const std::string run = dir / "r";
  test::Process launcher(torchrun(),
                         torchrun_arguments({"--standalone", "--nproc-per-node", "2"},
                                            joined(test::train_arguments(run, 100000, "ddp"),
                                                   {"--set", "checkpoint.every=100000"})));
  REQUIRE(test::wait_for(run + "/metrics.jsonl"));
  launcher.signal(SIGTERM);
  // Its own exit code tells of the signal, whatever that of the ranks is.
  const test::ProcessResult result = launcher.wait();
  CAPTURE(result.err);
  CHECK_THAT(log_of(run), Contains("all is saved, continue with --resume auto"));
  CHECK(fs::exists(run + "/checkpoints/latest"));
}

TEST_CASE("launchers: the environments of srun, mpirun and MPICH", "[apps][dist]") {
  const TempDir dir;
  const auto [launcher, rank, local_rank, others] =
      GENERATE(table<std::string, std::string, std::string, Texts>(
          {{"srun",
            "SLURM_PROCID",
            "SLURM_LOCALID",
            {"SLURM_JOB_ID=7", "SLURM_STEP_ID=0", "SLURM_NODEID=0", "SLURM_STEP_NUM_TASKS=2",
             "SLURM_STEP_NODELIST=localhost", "SLURM_STEP_TASKS_PER_NODE=2"}},
           {"mpirun",
            "OMPI_COMM_WORLD_RANK",
            "OMPI_COMM_WORLD_LOCAL_RANK",
            {"OMPI_COMM_WORLD_SIZE=2", "OMPI_COMM_WORLD_LOCAL_SIZE=2"}},
           {"mpirun", "PMI_RANK", "MPI_LOCALRANKID", {"PMI_SIZE=2", "MPI_LOCALNRANKS=2"}}}));
  CAPTURE(rank);
  const std::string run = dir / "r";
  const std::string port = str_cat("MASTER_PORT=", test::free_port());
  std::vector<std::unique_ptr<test::Process>> ranks;
  for (int64_t i = 0; i < 2; ++i) {
    ranks.push_back(std::make_unique<test::Process>(
        test::vgen_executable(), test::train_arguments(run, 2, "zero1"),
        joined(others, {str_cat(rank, "=", i), str_cat(local_rank, "=", i), port})));
  }
  check_all_done(ranks);
  CHECK_THAT(log_of(run), Contains(str_cat("2 ranks, started by ", launcher)));
}

TEST_CASE("launchers: mpirun", "[apps][dist]") {
  if (!has_program("mpirun")) return skip("no mpirun in PATH");
  const TempDir dir;
  const std::string run = dir / "r";
  // Open MPI wants to be asked twice by root, and for more ranks than cores; MPICH does not care.
  const Texts environment = {str_cat("MASTER_PORT=", test::free_port()), "OMPI_ALLOW_RUN_AS_ROOT=1",
                             "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1",
                             "OMPI_MCA_rmaps_base_oversubscribe=1",
                             "PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe"};
  check_done(test::run_process(
      "mpirun", joined({"-n", "2", test::vgen_executable()}, test::train_arguments(run, 3, "fsdp")),
      environment));
  CHECK_THAT(log_of(run), Contains("2 ranks, started by mpirun, strategy fsdp"));
}

TEST_CASE("launchers: srun", "[apps][dist]") {
  if (!has_program("srun") || std::getenv("SLURM_JOB_ID") == nullptr) {
    return skip("this is no SLURM job: no srun in PATH, or no SLURM_JOB_ID");
  }
  const TempDir dir;
  const std::string run = dir / "r";
  check_done(test::run_process(
      "srun", joined({"--overlap", "--nodes", "1", "--ntasks", "2", test::vgen_executable()},
                     test::train_arguments(run, 3, "fsdp"))));
  CHECK_THAT(log_of(run), Contains("2 ranks, started by srun, strategy fsdp"));
}

/// Two network namespaces, as two hosts, and a cable between them.
class TwoHosts {
 public:
  TwoHosts() {
    if (!has_program("ip")) {
      problem_ = "no program ip (iproute2) in PATH";
      return;
    }
    for (const std::string& name : names_) ip({"netns", "add", name});
    ip({"link", "add", "eth0", "netns", names_[0], "type", "veth", "peer", "name", "eth0", "netns",
        names_[1]});
    for (size_t host = 0; host < 2; ++host) {
      ip({"-n", names_[host], "address", "add", str_cat(address(host), "/24"), "dev", "eth0"});
      for (const std::string device : {"lo", "eth0"}) {
        ip({"-n", names_[host], "link", "set", device, "up"});
      }
    }
  }
  ~TwoHosts() {
    for (const std::string& name : made_) test::run_process("ip", {"netns", "delete", name});
  }
  TwoHosts(const TwoHosts&) = delete;
  TwoHosts& operator=(const TwoHosts&) = delete;

  /// Why there are none; empty: there are.
  const std::string& problem() const { return problem_; }
  static std::string address(size_t host) { return str_cat("10.213.7.", host + 1); }

  std::unique_ptr<test::Process> start(size_t host, const std::string& program,
                                       const Texts& arguments,
                                       const Texts& environment = {}) const {
    return std::make_unique<test::Process>(
        "ip", joined({"netns", "exec", names_[host], program}, arguments), environment);
  }

 private:
  void ip(const Texts& arguments) {
    if (!problem_.empty()) return;
    const test::ProcessResult result = test::run_process("ip", arguments);
    if (result.exit_code != 0) {
      problem_ = str_cat("network namespaces are not permitted: ip ", join(arguments, " "), ": ",
                         result.err);
    } else if (arguments[1] == "add" && arguments[0] == "netns") {
      made_.push_back(arguments[2]);
    }
  }

  Texts names_ = {str_cat("vgen-", ::getpid(), "-a"), str_cat("vgen-", ::getpid(), "-b")};
  Texts made_;
  std::string problem_;
};

TEST_CASE("launchers: two hosts of two ranks each train and go on", "[apps][dist]") {
  const TwoHosts hosts;
  if (!hosts.problem().empty()) return skip(hosts.problem());
  const TempDir dir;
  const std::string run = dir / "r";
  for (const int64_t steps : {4, 6}) {
    std::vector<std::unique_ptr<test::Process>> ranks;
    for (size_t rank = 0; rank < 4; ++rank) {
      ranks.push_back(
          hosts.start(rank / 2, test::vgen_executable(), test::train_arguments(run, steps, "hsdp"),
                      {str_cat("RANK=", rank), "WORLD_SIZE=4", str_cat("LOCAL_RANK=", rank % 2),
                       "LOCAL_WORLD_SIZE=2", str_cat("MASTER_ADDR=", TwoHosts::address(0))}));
    }
    check_all_done(ranks);
  }
  CHECK_THAT(log_of(run), Contains("4 ranks, started by environment, strategy hsdp") &&
                              Contains("going on after step 4"));
  check_done(test::run_vgen(test::train_arguments(dir / "one", 6, "none")));
  test::check_losses(test::losses(run), test::losses(dir / "one"));
}

TEST_CASE("launchers: torchrun on two hosts", "[apps][dist]") {
  if (torchrun().empty()) return skip("no .venv/bin/torchrun; scripts/setup.sh installs it");
  const TwoHosts hosts;
  if (!hosts.problem().empty()) return skip(hosts.problem());
  const TempDir dir;
  const std::string run = dir / "r";
  std::vector<std::unique_ptr<test::Process>> launchers;
  for (size_t host = 0; host < 2; ++host) {
    launchers.push_back(hosts.start(
        host, torchrun(),
        torchrun_arguments({"--nnodes", "2", "--node-rank", str_cat(host), "--nproc-per-node", "1",
                            "--master-addr", TwoHosts::address(0), "--master-port", "29500"},
                           test::train_arguments(run, 3, "fsdp"))));
  }
  check_all_done(launchers);
  CHECK_THAT(log_of(run), Contains("2 ranks, started by torchrun, strategy fsdp"));
  CHECK(test::losses(run).size() == 3);
}

}  // namespace
}  // namespace vgen
