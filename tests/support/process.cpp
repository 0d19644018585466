#include "support/process.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <string_view>

#include "support/support.h"
#include "vgen/core/strings.h"

extern char** environ;

namespace vgen::test {

namespace {

std::string temp_file() {
  char path[] = "/tmp/vgen-process-XXXXXX";
  const int fd = mkstemp(path);
  REQUIRE(fd >= 0);
  close(fd);
  return path;
}

std::vector<char*> pointers(std::vector<std::string>& texts) {
  std::vector<char*> result;
  for (std::string& text : texts) result.push_back(text.data());
  result.push_back(nullptr);
  return result;
}

}  // namespace

Process::Process(const std::string& program, const std::vector<std::string>& arguments,
                 const std::vector<std::string>& environment)
    : out_path_(temp_file()), err_path_(temp_file()) {
  std::vector<std::string> words{program}, variables = environment;
  words.insert(words.end(), arguments.begin(), arguments.end());
  for (char** variable = environ; *variable != nullptr; ++variable) variables.push_back(*variable);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, out_path_.c_str(), O_WRONLY, 0);
  posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, err_path_.c_str(), O_WRONLY, 0);
  const int error = posix_spawnp(&pid_, program.c_str(), &actions, nullptr, pointers(words).data(),
                                 pointers(variables).data());
  posix_spawn_file_actions_destroy(&actions);
  INFO(program);
  REQUIRE(error == 0);
}

Process::~Process() {
  if (pid_ > 0) {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  unlink(out_path_.c_str());
  unlink(err_path_.c_str());
}

void Process::signal(int number) const { kill(pid_, number); }

ProcessResult Process::wait() {
  int status = 0;
  REQUIRE(waitpid(pid_, &status, 0) == pid_);
  pid_ = -1;
  const int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return {code, read_file(out_path_), read_file(err_path_)};
}

ProcessResult run_process(const std::string& program, const std::vector<std::string>& arguments,
                          const std::vector<std::string>& environment) {
  return Process(program, arguments, environment).wait();
}

std::string vgen_executable() { return VGEN_EXECUTABLE; }

ProcessResult run_vgen(const std::vector<std::string>& arguments,
                       const std::vector<std::string>& environment) {
  return run_process(vgen_executable(), arguments, environment);
}

std::string vgen_error(const std::vector<std::string>& arguments,
                       const std::vector<std::string>& environment) {
  const ProcessResult result = run_vgen(arguments, environment);
  CAPTURE(result.out, result.err);
  REQUIRE(result.exit_code == 1);
  CHECK(result.out.empty());
  constexpr std::string_view kMark = "vgen: error: ";
  const size_t begin = result.err.find(kMark);
  REQUIRE(begin != std::string::npos);
  std::string line = result.err.substr(begin + kMark.size());
  REQUIRE(!line.empty());
  REQUIRE(line.find('\n') == line.size() - 1);  // the last line of all
  line.pop_back();
  return line;
}

}  // namespace vgen::test
