#pragma once
// Running programs as a user would.

#include <sys/types.h>

#include <string>
#include <vector>

namespace vgen::test {

struct ProcessResult {
  int exit_code = -1;  ///< 128 + signal when a signal ended it, as a shell counts
  std::string out;     ///< what it wrote to stdout
  std::string err;     ///< what it wrote to stderr
};

/// A running program. The destructor kills and reaps what still runs.
class Process {
 public:
  /// `program` is looked up in PATH; no shell is involved. "NAME=value" items of `environment` are
  /// added to this process's own. stdin is empty.
  Process(const std::string& program, const std::vector<std::string>& arguments,
          const std::vector<std::string>& environment = {});
  ~Process();
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  pid_t pid() const { return pid_; }
  void signal(int number) const;
  /// Waits for its end. Call once.
  ProcessResult wait();

 private:
  pid_t pid_ = -1;
  std::string out_path_, err_path_;
};

/// Runs a program to its end.
ProcessResult run_process(const std::string& program, const std::vector<std::string>& arguments,
                          const std::vector<std::string>& environment = {});

/// Runs the vgen executable of this build.
ProcessResult run_vgen(const std::vector<std::string>& arguments,
                       const std::vector<std::string>& environment = {});

/// Its path.
std::string vgen_executable();

/// Runs vgen, which must fail with exit code 1, print nothing on stdout and one error line on
/// stderr besides log lines. Returns that line without "vgen: error: ".
std::string vgen_error(const std::vector<std::string>& arguments,
                       const std::vector<std::string>& environment = {});

}  // namespace vgen::test
