#include "vgen/dist/launch.h"

#include <unistd.h>

#include <catch2/catch.hpp>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "support/support.h"
#include "vgen/core/strings.h"

using namespace vgen;
using Catch::Matchers::Contains;

namespace {

using Variables = std::map<std::string, std::string>;

/// The environment of a launch, and none afterwards.
class Environment {
 public:
  explicit Environment(const Variables& variables) {
    clear();
    for (const auto& [name, value] : variables) ::setenv(name.c_str(), value.c_str(), 1);
  }
  ~Environment() { clear(); }

 private:
  static void clear() {
    std::vector<std::string> names;
    for (char** entry = environ; *entry != nullptr; ++entry) {
      const std::string name = split(*entry, '=').front();
      for (const char* prefix : {"RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "GLOO_SOCKET_",
                                 "TORCHELASTIC_", "SLURM_", "OMPI_COMM_", "PMI_", "MPI_"}) {
        if (name.starts_with(prefix)) names.push_back(name);
      }
    }
    for (const std::string& name : names) ::unsetenv(name.c_str());
  }
};

dist::Launch launch_of(const Variables& variables) {
  const Environment environment(variables);
  return dist::launch_from_environment();
}

std::string error_of(const Variables& variables) {
  return test::error_of([&] { launch_of(variables); });
}

std::string meeting_error_of(const Variables& variables) {
  const dist::Launch launch = launch_of(variables);
  return test::error_of([&] { dist::require_meeting_point(launch); });
}

/// `base` with some variables changed; an empty one counts as not set.
Variables with(Variables base, const Variables& changes) {
  for (const auto& [name, value] : changes) base[name] = value;
  return base;
}

const Variables kTorchrun = {{"RANK", "11"},
                             {"WORLD_SIZE", "16"},
                             {"LOCAL_RANK", "3"},
                             {"LOCAL_WORLD_SIZE", "8"},
                             {"MASTER_ADDR", "gpu07"},
                             {"MASTER_PORT", "41234"},
                             {"TORCHELASTIC_RUN_ID", "none"},
                             {"TORCHELASTIC_USE_AGENT_STORE", "True"}};

const Variables kSrun = {{"SLURM_JOB_ID", "1234567"},
                         {"SLURM_JOB_NODELIST", "gpu[01-08]"},
                         {"SLURM_NTASKS", "11"},
                         {"SLURM_PROCID", "9"},
                         {"SLURM_LOCALID", "1"},
                         {"SLURM_NODEID", "2"},
                         {"SLURM_STEP_ID", "3"},
                         {"SLURM_STEP_NUM_TASKS", "11"},
                         {"SLURM_STEP_NODELIST", "gpu[03-04,08]"},
                         {"SLURM_STEP_TASKS_PER_NODE", "4(x2),3"}};

const Variables kOpenMpi = {{"OMPI_COMM_WORLD_RANK", "5"},
                            {"OMPI_COMM_WORLD_SIZE", "8"},
                            {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                            {"OMPI_COMM_WORLD_LOCAL_SIZE", "4"}};

const Variables kMpich = {
    {"PMI_RANK", "5"}, {"PMI_SIZE", "8"}, {"MPI_LOCALRANKID", "1"}, {"MPI_LOCALNRANKS", "4"}};

}  // namespace

TEST_CASE("launch: without a launcher this is the only process", "[dist]") {
  const dist::Launch launch = launch_of({{"MASTER_ADDR", "gpu07"}});
  CHECK(launch.rank == 0);
  CHECK(launch.world_size == 1);
  CHECK(launch.local_world_size == 1);
  CHECK(launch.launcher == "none");
  CHECK_NOTHROW(dist::require_meeting_point(launch));
}

TEST_CASE("launch: what torchrun sets", "[dist]") {
  const dist::Launch launch = launch_of(kTorchrun);
  CHECK(launch.rank == 11);
  CHECK(launch.world_size == 16);
  CHECK(launch.local_rank == 3);
  CHECK(launch.local_world_size == 8);
  CHECK(launch.launcher == "torchrun");
  CHECK(launch.master_addr == "gpu07");
  CHECK(launch.master_port == 41234);
  CHECK(launch.is_store_hosted);
  CHECK(launch.interface.empty());

  CHECK_FALSE(
      launch_of(with(kTorchrun, {{"TORCHELASTIC_USE_AGENT_STORE", "False"}})).is_store_hosted);
  CHECK(launch_of(with(kTorchrun, {{"GLOO_SOCKET_IFNAME", "ib0"}})).interface == "ib0");
}

TEST_CASE("launch: ranks set by hand", "[dist]") {
  const dist::Launch bare = launch_of({{"RANK", "1"}, {"WORLD_SIZE", "2"}});
  CHECK(bare.rank == 1);
  CHECK(bare.world_size == 2);
  CHECK(bare.local_rank == 0);
  CHECK(bare.local_world_size == 0);
  CHECK(bare.launcher == "environment");
  CHECK(bare.master_addr.empty());
  CHECK(bare.master_port == 29500);
  CHECK_FALSE(bare.is_store_hosted);

  const dist::Launch local =
      launch_of({{"RANK", "1"}, {"WORLD_SIZE", "2"}, {"LOCAL_WORLD_SIZE", "2"}});
  CHECK(local.master_addr == "127.0.0.1");
  CHECK_NOTHROW(dist::require_meeting_point(local));

  CHECK(launch_of({{"RANK", "0"}, {"WORLD_SIZE", "1"}, {"LOCAL_RANK", "2"}}).local_rank == 2);
  CHECK(launch_of(with(kSrun, {{"RANK", "0"}, {"WORLD_SIZE", "2"}})).world_size == 2);
}

TEST_CASE("launch: what srun sets", "[dist]") {
  const dist::Launch launch = launch_of(kSrun);
  CHECK(launch.rank == 9);
  CHECK(launch.world_size == 11);
  CHECK(launch.local_rank == 1);
  CHECK(launch.local_world_size == 3);
  CHECK(launch.launcher == "srun");
  CHECK(launch.master_addr == "gpu03");
  CHECK(launch.master_port == 20000 + (1234567 + 3) % 12000);
  CHECK_FALSE(launch.is_store_hosted);

  const dist::Launch second_host = launch_of(with(kSrun, {{"SLURM_NODEID", "1"}}));
  CHECK(second_host.local_world_size == 4);
  CHECK(second_host.master_port == launch.master_port);
  CHECK(launch_of(with(kSrun, {{"SLURM_STEP_ID", "4"}})).master_port != launch.master_port);
  CHECK(launch_of(with(kSrun, {{"SLURM_STEP_NODELIST", ""}})).master_addr == "gpu01");
  CHECK(launch_of(with(kSrun, {{"SLURM_STEP_TASKS_PER_NODE", ""}})).local_world_size == 0);
  CHECK(launch_of(with(kSrun, {{"SLURM_STEP_TASKS_PER_NODE", "11"}, {"SLURM_NODEID", "0"}}))
            .master_addr == "127.0.0.1");

  const dist::Launch chosen =
      launch_of(with(kSrun, {{"MASTER_ADDR", "gpu04-ib"}, {"MASTER_PORT", "1234"}}));
  CHECK(chosen.master_addr == "gpu04-ib");
  CHECK(chosen.master_port == 1234);
}

TEST_CASE("launch: the shell of a SLURM job is one process", "[dist]") {
  const Variables shell = {{"SLURM_JOB_ID", "1234567"}, {"SLURM_JOB_NODELIST", "gpu[01-08]"},
                           {"SLURM_NTASKS", "11"},      {"SLURM_PROCID", "0"},
                           {"SLURM_LOCALID", "0"},      {"SLURM_NODEID", "0"}};
  CHECK(launch_of(shell).world_size == 1);
  CHECK(launch_of(with(shell, {{"SLURM_STEP_ID", "-5"}})).world_size == 1);
  // Submitted from within a step, whose variables it inherits.
  CHECK(launch_of(with(shell, {{"SLURM_STEP_ID", "-5"}, {"SLURM_STEP_NUM_TASKS", "11"}}))
            .world_size == 1);
  const dist::Launch interactive =
      launch_of(with(shell, {{"SLURM_STEP_ID", "0"}, {"SLURM_STEP_NUM_TASKS", "1"}}));
  CHECK(interactive.world_size == 1);
  CHECK(interactive.launcher == "none");
}

TEST_CASE("launch: what mpirun sets", "[dist]") {
  for (const Variables& variables : {kOpenMpi, kMpich}) {
    const dist::Launch launch = launch_of(with(variables, {{"MASTER_ADDR", "gpu07"}}));
    CHECK(launch.rank == 5);
    CHECK(launch.world_size == 8);
    CHECK(launch.local_rank == 1);
    CHECK(launch.local_world_size == 4);
    CHECK(launch.launcher == "mpirun");
    CHECK(launch.master_addr == "gpu07");
    CHECK(launch.master_port == 29500);
  }
  const dist::Launch local = launch_of(
      with(kOpenMpi, {{"OMPI_COMM_WORLD_LOCAL_RANK", "5"}, {"OMPI_COMM_WORLD_LOCAL_SIZE", "8"}}));
  CHECK(local.master_addr == "127.0.0.1");
  CHECK(launch_of({{"OMPI_COMM_WORLD_RANK", "0"}, {"OMPI_COMM_WORLD_SIZE", "1"}}).launcher ==
        "none");

  // mpirun's daemon on another host is itself a step of srun; a step has PMI_RANK by itself.
  CHECK(launch_of(with(kSrun, kOpenMpi)).launcher == "mpirun");
  CHECK(launch_of(with(kSrun, {{"PMI_RANK", "9"}, {"PMI_SIZE", "11"}})).launcher == "srun");
}

TEST_CASE("launch: what is no number, no rank or no port", "[dist]") {
  CHECK_THAT(error_of({{"RANK", "2"}, {"WORLD_SIZE", "2"}}),
             Contains("RANK 2, WORLD_SIZE 2") && Contains("RANK < WORLD_SIZE"));
  CHECK_THAT(error_of({{"RANK", "-1"}, {"WORLD_SIZE", "2"}}), Contains("RANK -1"));
  CHECK_THAT(error_of({{"RANK", "0"}, {"WORLD_SIZE", "0"}}), Contains("WORLD_SIZE 0"));
  CHECK_THAT(error_of({{"RANK", "0"}, {"WORLD_SIZE", "two"}}),
             Contains("WORLD_SIZE is 'two', expected a number"));
  CHECK_THAT(error_of({{"WORLD_SIZE", "2"}}), Contains("has WORLD_SIZE, but not RANK"));
  CHECK_THAT(error_of({{"RANK", "1"}}), Contains("has RANK, but not WORLD_SIZE"));
  CHECK_THAT(error_of(with(kTorchrun, {{"LOCAL_RANK", "8"}})),
             Contains("local rank 8 of the 8 ranks") && Contains("LOCAL_WORLD_SIZE"));
  CHECK_THAT(error_of(with(kTorchrun, {{"LOCAL_WORLD_SIZE", "17"}})), Contains("16 ranks in all"));
  CHECK_THAT(error_of(with(kTorchrun, {{"MASTER_PORT", "65536"}})),
             Contains("MASTER_PORT is 65536, expected a port from 1 to 65535"));
  CHECK_THAT(error_of(with(kOpenMpi, {{"OMPI_COMM_WORLD_RANK", "8"}})),
             Contains("OMPI_COMM_WORLD_RANK 8, OMPI_COMM_WORLD_SIZE 8"));
  CHECK_THAT(error_of(with(kSrun, {{"SLURM_PROCID", ""}})),
             Contains("has SLURM_STEP_NUM_TASKS, but not SLURM_PROCID"));
  CHECK_THAT(error_of(with(kSrun, {{"SLURM_NODEID", "3"}})),
             Contains("SLURM_NODEID 3") && Contains("with 3 hosts"));
  for (const char* tasks : {"4(x2", "4(x)", "4(x0)", "(x2)", "4(2)", ",4", "four", "0"}) {
    INFO(tasks);
    CHECK_THAT(error_of(with(kSrun, {{"SLURM_STEP_TASKS_PER_NODE", tasks}})),
               Contains(std::string("SLURM_STEP_TASKS_PER_NODE is '") + tasks));
  }
}

TEST_CASE("launch: several hosts need MASTER_ADDR to meet", "[dist]") {
  CHECK_THAT(meeting_error_of({{"RANK", "1"}, {"WORLD_SIZE", "2"}}),
             Contains("2 ranks, but no MASTER_ADDR") && Contains("127.0.0.1 if"));
  CHECK_THAT(meeting_error_of(kOpenMpi), Contains("8 ranks, but no MASTER_ADDR") &&
                                             Contains("mpirun -x MASTER_ADDR=HOST_OF_RANK_0"));
  CHECK_THAT(meeting_error_of(kMpich), Contains("-genv MASTER_ADDR HOST_OF_RANK_0"));
  CHECK_NOTHROW(dist::require_meeting_point(launch_of(kTorchrun)));
}

TEST_CASE("launch: the interface that Gloo has to use is one of this host", "[dist]") {
  CHECK_THAT(meeting_error_of(with(kTorchrun, {{"GLOO_SOCKET_IFNAME", "none0"}})),
             Contains("GLOO_SOCKET_IFNAME is 'none0'") && Contains("`ip link`"));
  CHECK_NOTHROW(
      dist::require_meeting_point(launch_of(with(kTorchrun, {{"GLOO_SOCKET_IFNAME", "lo"}}))));
  CHECK_NOTHROW(dist::require_meeting_point(launch_of({{"GLOO_SOCKET_IFNAME", "none0"}})));
}

TEST_CASE("launch: the first host of a SLURM list", "[dist]") {
  CHECK(dist::first_slurm_host("gpu[03-07,12],login1") == "gpu03");
  CHECK(dist::first_slurm_host("gpu[12,03-07]") == "gpu12");
  CHECK(dist::first_slurm_host("rack[1-2]n[01-04]") == "rack1n01");
  CHECK(dist::first_slurm_host("rack[1-2]-ib,gpu1") == "rack1-ib");
  CHECK(dist::first_slurm_host("a,b") == "a");
  CHECK(dist::first_slurm_host("node-7.cluster_2.org") == "node-7.cluster_2.org");
  for (const char* list : {"", ",a", "gpu[", "gpu[]", "gpu[03", "gpu]", "gpu[-3]", "gpu[a-b]",
                           "gpu[1[2]]", "gpu 1", "(null)"}) {
    INFO(list);
    CHECK_THAT(test::error_of([&] { dist::first_slurm_host(list); }),
               Contains(std::string("node list is '") + list + "'"));
  }
}
