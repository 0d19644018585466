// `vgen train` under the launchers of clusters. What needs something that is not here says so and
// counts as skipped (cmake/VgenTests.cmake).

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <chrono>
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
  test::Process launcher(torchrun(), torchrun_arguments({"--standalone", "--nproc-per-node", "2"},
                                                        test::endless_arguments(run, "ddp")));
  REQUIRE(test::wait_for_step(run, 1));
  launcher.signal(SIGTERM);
  // Its own exit code tells of the signal, whatever that of the ranks is.
  const test::ProcessResult result = launcher.wait();
  CAPTURE(result.err);
  CHECK(result.exit_code != 0);
  test::check_saved(run);
}

TEST_CASE("launchers: a signal to one rank of torchrun saves, and it exits with 0",
          "[apps][dist]") {
  if (torchrun().empty()) return skip("no .venv/bin/torchrun; scripts/setup.sh installs it");
  const TempDir dir;
  const std::string run = dir / "r";
  test::Process launcher(torchrun(), torchrun_arguments({"--standalone", "--nproc-per-node", "2"},
                                                        test::endless_arguments(run, "ddp")));
  REQUIRE(test::wait_for_step(run, 1));
  const pid_t rank = find_rank(launcher.pid(), 1);
  REQUIRE(rank > 0);
  REQUIRE(::kill(rank, SIGTERM) == 0);
  check_done(launcher.wait());
  test::check_saved(run);
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

/// Why srun cannot start anything; empty: it can. scripts/with_slurm.sh makes a job.
std::string srun_problem() {
  if (has_program("srun") && std::getenv("SLURM_JOB_ID") != nullptr) return "";
  return "this is no SLURM job: no srun in PATH, or no SLURM_JOB_ID";
}

/// What srun takes for two ranks of `vgen train`.
Texts srun_arguments(const Texts& arguments) {
  return joined({"--overlap", "--nodes", "1", "--ntasks", "2", test::vgen_executable()}, arguments);
}

TEST_CASE("launchers: srun", "[apps][dist]") {
  if (const std::string problem = srun_problem(); !problem.empty()) return skip(problem);
  const TempDir dir;
  const std::string run = dir / "r";
  check_done(test::run_process("srun", srun_arguments(test::train_arguments(run, 3, "fsdp"))));
  CHECK_THAT(log_of(run), Contains("2 ranks, started by srun, strategy fsdp"));
}

TEST_CASE("launchers: srun whose ranks get a signal of scancel saves and exits with 0",
          "[apps][dist]") {
  if (const std::string problem = srun_problem(); !problem.empty()) return skip(problem);
  const TempDir dir;
  const std::string run = dir / "r";
  test::Process launcher("srun", srun_arguments(test::endless_arguments(run, "ddp")));
  REQUIRE(test::wait_for_step(run, 1));
  // One to srun itself would kill the ranks.
  check_done(test::run_process("scancel", {"--signal=TERM", std::getenv("SLURM_JOB_ID")}));
  check_done(launcher.wait());
  test::check_saved(run);
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
  /// From now on nothing arrives on either side, and nobody is told.
  void cut_cable() const {
    const auto result = test::run_process("ip", {"-n", names_[1], "link", "set", "eth0", "down"});
    REQUIRE(result.exit_code == 0);
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

/// Ranks on both, `per_host` each, those of the first before those of the second.
std::vector<std::unique_ptr<test::Process>> start_ranks(const TwoHosts& hosts, size_t per_host,
                                                        const Texts& arguments) {
  std::vector<std::unique_ptr<test::Process>> ranks;
  for (size_t rank = 0; rank < 2 * per_host; ++rank) {
    ranks.push_back(hosts.start(
        rank / per_host, test::vgen_executable(), arguments,
        {str_cat("RANK=", rank), str_cat("WORLD_SIZE=", 2 * per_host),
         str_cat("LOCAL_RANK=", rank % per_host), str_cat("LOCAL_WORLD_SIZE=", per_host),
         str_cat("MASTER_ADDR=", TwoHosts::address(0))}));
  }
  return ranks;
}

TEST_CASE("launchers: two hosts of two ranks each train, and go on when one was lost",
          "[apps][dist]") {
  const TwoHosts hosts;
  if (!hosts.problem().empty()) return skip(hosts.problem());
  const TempDir dir;
  const std::string run = dir / "r";
  const auto arguments = test::train_arguments(run, 24, "hsdp");
  {
    const auto ranks = start_ranks(hosts, 2, arguments);
    REQUIRE(test::wait_for_step(run, 4));
    for (const size_t rank : {2, 3}) ranks[rank]->signal(SIGKILL);
    for (const size_t rank : {0, 1}) {
      const auto result = ranks[rank]->wait();
      CAPTURE(rank, result.err);
      CHECK(result.exit_code == 1);
      CHECK_THAT(result.err, Contains("no word from rank 2 (") && Contains("rank 3 ("));
    }
  }
  check_all_done(start_ranks(hosts, 2, arguments));
  CHECK_THAT(log_of(run), Contains("4 ranks, started by environment, strategy hsdp") &&
                              Contains("no word from rank 2 (") &&
                              Contains("going on after step "));
  check_done(test::run_vgen(test::train_arguments(dir / "one", 24, "none")));
  test::check_losses(test::losses(run), test::losses(dir / "one"));
}

TEST_CASE("launchers: both sides of a cable that is cut end", "[apps][dist]") {
  const TwoHosts hosts;
  if (!hosts.problem().empty()) return skip(hosts.problem());
  const TempDir dir;
  const std::string run = dir / "r";
  const auto ranks =
      start_ranks(hosts, 1, test::endless_arguments(run, "fsdp", {"parallel.timeout_s=5"}));
  REQUIRE(test::wait_for_step(run, 2));
  hosts.cut_cable();
  const auto begin = std::chrono::steady_clock::now();
  const auto near = ranks[0]->wait(), far = ranks[1]->wait();
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(60));
  CAPTURE(near.err, far.err);
  CHECK(near.exit_code == 1);
  CHECK_THAT(near.err, Contains("; no word from rank 1 ("));
  CHECK(far.exit_code == 1);
  CHECK_THAT(far.err,
             Contains(str_cat("rank 1 of 2: no answer in 10 s from the store of the ranks at ",
                              TwoHosts::address(0), ":29500: the network is cut")));
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
