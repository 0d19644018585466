// `vgen` itself: sets how threads wait for each other, which the OpenMP library reads as it is
// loaded, then becomes vgen-main, which lies beside it.

#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>
#include <system_error>

// Turns that a thread spins before it sleeps, some ten microseconds: as fast as spinning on where
// the processor is its own. libgomp's 300,000 are not where another program runs on the same cores:
// each loop then waits for a thread that was put aside for using up its time.
constexpr const char* kSpinCount = "10000";

int main(int /*argc*/, char** argv) {
  if (std::getenv("OMP_WAIT_POLICY") == nullptr) setenv("GOMP_SPINCOUNT", kSpinCount, 0);
  std::error_code error;
  std::string self = std::filesystem::read_symlink("/proc/self/exe", error).string();
  if (error) self = argv[0];  // without /proc; good enough where a path was typed
  const std::string program = self + "-main";
  execv(program.c_str(), argv);
  std::fprintf(stderr, "vgen: error: %s: cannot be started: %s; it must lie beside %s\n",
               program.c_str(), std::strerror(errno), self.c_str());
  return 1;
}
