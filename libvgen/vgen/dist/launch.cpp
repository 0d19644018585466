#include "vgen/dist/launch.h"

#include <net/if.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <initializer_list>
#include <optional>
#include <string_view>

#include "vgen/core/error.h"

namespace vgen::dist {
namespace {

constexpr int64_t kDefaultPort = 29500;
// SLURM's jobs get a port below those that the kernel hands out for outgoing connections.
constexpr int64_t kFirstSlurmPort = 20000;
constexpr int64_t kNumSlurmPorts = 12000;

/// The variables in which a launcher says who is who.
struct Variables {
  const char* launcher;
  const char* rank;
  const char* world_size;
  const char* local_rank;
  const char* local_world_size;  ///< null: it has none that is a plain number
};
constexpr Variables kTorchrun{"torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"};
constexpr Variables kOpenMpi{"mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE",
                             "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"};
constexpr Variables kMpich{"mpirun", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"};
constexpr Variables kSrun{"srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", nullptr};

/// Empty: not set.
std::string text_of(const char* name) {
  const char* text = std::getenv(name);
  return text == nullptr ? "" : text;
}

bool has(const char* name) { return !text_of(name).empty(); }

std::optional<int64_t> number_of(const char* name) {
  const std::string text = text_of(name);
  if (text.empty()) return {};
  int64_t value = 0;
  require(parse_int(text, value), ErrorCode::kInvalidArgument, "the environment variable ", name,
          " is '", printable(text), "', expected a number");
  return value;
}

int64_t rank_number_of(const char* name, const char* other) {
  const auto value = number_of(name);
  require(value.has_value(), ErrorCode::kInvalidArgument, "the environment has ", other,
          ", but not ", name, ": set both, or neither for one process");
  return *value;
}

Launch read_ranks(const Variables& names) {
  const Launch launch{.rank = rank_number_of(names.rank, names.world_size),
                      .world_size = rank_number_of(names.world_size, names.rank),
                      .local_rank = number_of(names.local_rank).value_or(0),
                      .local_world_size = names.local_world_size
                                              ? number_of(names.local_world_size).value_or(0)
                                              : 0,
                      .launcher = names.launcher};
  require(launch.rank >= 0 && launch.rank < launch.world_size && launch.local_rank >= 0,
          ErrorCode::kInvalidArgument, "the environment has ", names.rank, " ", launch.rank, ", ",
          names.world_size, " ", launch.world_size, " and ", names.local_rank, " ",
          launch.local_rank, ": expected 0 <= ", names.rank, " < ", names.world_size, " and ",
          names.local_rank, " from 0 up");
  return launch;
}

void check_local_ranks(const Launch& launch, std::string_view source) {
  const int64_t size = launch.local_world_size;
  require(size == 0 || (launch.local_rank < size && size <= launch.world_size),
          ErrorCode::kInvalidArgument, "the environment has local rank ", launch.local_rank,
          " of the ", size, " ranks on this host (", source, ") and ", launch.world_size,
          " ranks in all: expected local rank < ranks on this host <= all ranks");
}

/// Where the ranks meet. The arguments are for where the user does not say.
void set_meeting_point(Launch& launch, const std::string& host, int64_t port) {
  launch.interface = text_of("GLOO_SOCKET_IFNAME");
  launch.master_addr = text_of("MASTER_ADDR");
  launch.master_port = number_of("MASTER_PORT").value_or(port);
  require(launch.master_port >= 1 && launch.master_port <= 65535, ErrorCode::kInvalidArgument,
          "the environment variable MASTER_PORT is ", launch.master_port,
          ", expected a port from 1 to 65535");
  if (!launch.master_addr.empty()) return;
  const bool is_one_host = launch.local_world_size == launch.world_size;
  launch.master_addr = is_one_host ? "127.0.0.1" : host;
}

Launch launch_of_torchrun() {
  Launch launch = read_ranks(kTorchrun);
  check_local_ranks(launch, kTorchrun.local_world_size);
  if (has("TORCHELASTIC_RUN_ID")) {
    launch.is_store_hosted = text_of("TORCHELASTIC_USE_AGENT_STORE") == "True";
  } else {
    launch.launcher = "environment";
  }
  set_meeting_point(launch, /*host=*/"", kDefaultPort);
  return launch;
}

Launch launch_of_mpirun(const Variables& names) {
  Launch launch = read_ranks(names);
  check_local_ranks(launch, names.local_world_size);
  set_meeting_point(launch, /*host=*/"", kDefaultPort);
  return launch;
}

/// "4" or "4(x2)", the latter for two hosts in a row. False for what is neither.
bool parse_tasks(std::string_view text, int64_t& num_tasks, int64_t& num_hosts) {
  const size_t open = text.find("(x");
  num_hosts = 1;
  if (open != text.npos) {
    if (text.back() != ')') return false;
    const std::string_view times = text.substr(open + 2, text.size() - open - 3);
    if (!parse_int(times, num_hosts) || num_hosts < 1) return false;
  }
  return parse_int(text.substr(0, open), num_tasks) && num_tasks >= 1;
}

/// The tasks of one host in a list such as "4(x2),3".
int64_t tasks_of_host(const std::string& list, int64_t host) {
  int64_t num_before = 0;
  for (const std::string& part : split(list, ',')) {
    int64_t num_tasks = 0, num_hosts = 0;
    require(parse_tasks(part, num_tasks, num_hosts), ErrorCode::kInvalidArgument,
            "the environment variable SLURM_STEP_TASKS_PER_NODE is '", printable(list),
            "', expected a list such as 4(x2),3");
    num_before += num_hosts;
    if (host < num_before) return num_tasks;
  }
  throw_error(ErrorCode::kInvalidArgument, "the environment has SLURM_NODEID ", host,
              " and SLURM_STEP_TASKS_PER_NODE '", printable(list), "' with ", num_before,
              " hosts: expected a host of that list, counted from 0");
}

std::string first_of(std::initializer_list<const char*> names) {
  for (const char* name : names) {
    if (has(name)) return text_of(name);
  }
  return {};
}

/// The shell of sbatch has task numbers too, in recent versions even a step number, a negative one.
bool is_step_of_srun() {
  return number_of(kSrun.world_size).value_or(1) > 1 && number_of("SLURM_STEP_ID").value_or(0) >= 0;
}

Launch launch_of_srun() {
  Launch launch = read_ranks(kSrun);
  const std::string tasks = text_of("SLURM_STEP_TASKS_PER_NODE");
  const auto host = number_of("SLURM_NODEID");
  if (!tasks.empty() && host) launch.local_world_size = tasks_of_host(tasks, *host);
  check_local_ranks(launch, "SLURM_STEP_TASKS_PER_NODE");
  const std::string hosts =
      first_of({"SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"});
  // Fixed by the step, so that all its ranks agree; two steps at a time seldom share one.
  const int64_t number =
      number_of("SLURM_JOB_ID").value_or(0) + number_of("SLURM_STEP_ID").value_or(0);
  set_meeting_point(launch, hosts.empty() ? "" : first_slurm_host(hosts),
                    kFirstSlurmPort + number % kNumSlurmPorts);
  return launch;
}

/// The first number of "03-07,12", as it is written there; empty if this is no list of numbers.
std::string_view first_number(std::string_view ranges) {
  if (ranges.find_first_not_of("0123456789-,") != ranges.npos) return {};
  return ranges.substr(0, ranges.find_first_of("-,"));
}

bool is_host_character(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-' ||
         c == '.' || c == '_';
}

}  // namespace

Launch launch_from_environment() {
  if (has(kTorchrun.rank) || has(kTorchrun.world_size)) return launch_of_torchrun();
  if (number_of(kOpenMpi.world_size).value_or(1) > 1) return launch_of_mpirun(kOpenMpi);
  // srun has PMI_RANK and PMI_SIZE too, but not the local rank.
  if (has(kMpich.local_rank) && number_of(kMpich.world_size).value_or(1) > 1) {
    return launch_of_mpirun(kMpich);
  }
  if (is_step_of_srun()) return launch_of_srun();
  return {};
}

void require_meeting_point(const Launch& launch) {
  if (launch.world_size == 1) return;
  require(launch.interface.empty() || if_nametoindex(launch.interface.c_str()) != 0,
          ErrorCode::kInvalidArgument, "the environment variable GLOO_SOCKET_IFNAME is '",
          printable(launch.interface),
          "', but this host has no network interface of that name; `ip link` lists those it has");
  if (!launch.master_addr.empty()) return;
  throw_error(ErrorCode::kInvalidArgument, "the environment has ", launch.world_size,
              " ranks, but no MASTER_ADDR at which they can meet: ",
              launch.launcher == "mpirun"
                  ? "start them with mpirun -x MASTER_ADDR=HOST_OF_RANK_0 (MPICH and Intel MPI: "
                    "-genv MASTER_ADDR HOST_OF_RANK_0)"
                  : "set it to the host of rank 0 (127.0.0.1 if all ranks are on one host)");
}

std::string host_id() {
  std::string id;
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  if (std::getline(file, id) && !id.empty()) return id;
  char name[256] = "";
  ::gethostname(name, sizeof(name) - 1);
  return name;
}

std::string first_slurm_host(const std::string& nodelist) {
  const auto check = [&nodelist](bool condition) {
    require(condition, ErrorCode::kInvalidArgument, "the SLURM node list is '", printable(nodelist),
            "', expected hosts such as gpu[03-07,12],login1");
  };
  std::string host;
  for (size_t i = 0; i < nodelist.size() && nodelist[i] != ','; ++i) {
    if (nodelist[i] == '[') {
      const size_t close = nodelist.find(']', i);
      check(close != nodelist.npos);
      const std::string_view ranges(nodelist.data() + i + 1, close - i - 1);
      const std::string_view number = first_number(ranges);
      check(!number.empty());
      host += number;
      i = close;
    } else {
      check(is_host_character(nodelist[i]));
      host += nodelist[i];
    }
  }
  check(!host.empty());
  return host;
}

}  // namespace vgen::dist
