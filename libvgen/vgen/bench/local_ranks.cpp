// run_local_ranks(): what a launcher does, for one machine.

#include <arpa/inet.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

#include "vgen/bench/collectives_bench.h"
#include "vgen/core/error.h"
#include "vgen/dist/launch.h"

extern char** environ;

namespace vgen::bench {

namespace {

/// A port of the loopback that nobody listens at now.
int64_t free_port() {
  const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  auto* name = reinterpret_cast<sockaddr*>(&address);
  const bool is_found =
      fd >= 0 && ::bind(fd, name, length) == 0 && ::getsockname(fd, name, &length) == 0;
  const int error = errno;
  if (fd >= 0) ::close(fd);
  require(is_found, ErrorCode::kUnavailable, "no free port on this machine: ", errno_text(error));
  return ntohs(address.sin_port);
}

std::vector<char*> pointers(std::vector<std::string>& texts) {
  std::vector<char*> result;
  for (std::string& text : texts) result.push_back(text.data());
  result.push_back(nullptr);
  return result;
}

/// The processes of a run. What still runs at the end is ended.
class LocalRanks {
 public:
  ~LocalRanks() {
    for (const pid_t pid : pids_) {
      if (pid == 0) continue;
      ::kill(pid, SIGTERM);
      ::waitpid(pid, nullptr, 0);
    }
  }

  void start(const std::vector<std::string>& arguments, int64_t rank, int64_t ranks, int64_t port) {
    std::vector<std::string> words{"vgen"};
    words.insert(words.end(), arguments.begin(), arguments.end());
    // The first of two variables with one name counts.
    std::vector<std::string> variables{
        str_cat("RANK=", rank),       str_cat("WORLD_SIZE=", ranks),
        str_cat("LOCAL_RANK=", rank), str_cat("LOCAL_WORLD_SIZE=", ranks),
        "MASTER_ADDR=127.0.0.1",      str_cat("MASTER_PORT=", port)};
    for (char** variable = environ; *variable != nullptr; ++variable) {
      variables.emplace_back(*variable);
    }
    pid_t pid = 0;
    const int error = ::posix_spawn(&pid, "/proc/self/exe", nullptr, nullptr,
                                    pointers(words).data(), pointers(variables).data());
    require(error == 0, ErrorCode::kUnavailable, "rank ", rank, " of ", ranks,
            " cannot be started: ", errno_text(error));
    pids_.push_back(pid);
  }

  /// Until all have ended, or one has failed.
  void wait() {
    for (size_t ended = 0; ended < pids_.size(); ++ended) {
      int status = 0;
      pid_t pid = -1;
      do {
        pid = ::waitpid(-1, &status, 0);  // this program has no other children
      } while (pid < 0 && errno == EINTR);
      for (size_t rank = 0; rank < pids_.size(); ++rank) {
        if (pids_[rank] != pid) continue;
        pids_[rank] = 0;
        require(WIFEXITED(status) && WEXITSTATUS(status) == 0, ErrorCode::kUnavailable, "rank ",
                rank, " of ", pids_.size(), " ended with ",
                WIFEXITED(status) ? str_cat("exit code ", WEXITSTATUS(status))
                                  : str_cat("signal ", WTERMSIG(status)),
                "; what it printed above says why");
      }
    }
  }

 private:
  std::vector<pid_t> pids_;  ///< of each rank, 0: it has ended
};

}  // namespace

void run_local_ranks(int64_t ranks, const std::vector<std::string>& arguments) {
  require(ranks >= 2 && ranks <= 1024, ErrorCode::kInvalidArgument, "--ranks ", ranks,
          ": expected 2 to 1024");
  const dist::Launch launch = dist::launch_from_environment();
  require(launch.world_size == 1, ErrorCode::kInvalidArgument, "--ranks ", ranks, ", but ",
          launch.launcher, " has started ", launch.world_size,
          " processes already; leave --ranks out");
  std::fflush(stdout);  // before what rank 0 prints
  const int64_t port = free_port();
  LocalRanks processes;
  for (int64_t rank = 0; rank < ranks; ++rank) processes.start(arguments, rank, ranks, port);
  processes.wait();
}

}  // namespace vgen::bench
