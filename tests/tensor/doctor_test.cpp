#include "vgen/tensor/doctor.h"

#include <unistd.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <string>

#include "support/support.h"
#include "vgen/core/strings.h"
#include "vgen/tensor/detail/cuda_report.h"
#include "vgen/tensor/device.h"

namespace vgen {

namespace {

bool has_problem(const DoctorReport& report, const std::string& part) {
  return std::ranges::any_of(report.problems, [&](const std::string& problem) {
    return problem.find(part) != std::string::npos;
  });
}

constexpr const char* kVariable = "OMP_NUM_THREADS";

/// OMP_NUM_THREADS and the threads of operators, until the end of a scope; 0 = not set.
class Threads {
 public:
  explicit Threads(int count) {
    if (const char* value = std::getenv(kVariable)) before_ = value;
    set(count == 0 ? std::nullopt : std::optional(std::to_string(count)));
    set_num_threads(count);
  }
  ~Threads() {
    set(before_);
    set_num_threads(0);
  }
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

 private:
  static void set(const std::optional<std::string>& value) {
    if (value) {
      setenv(kVariable, value->c_str(), 1);
    } else {
      unsetenv(kVariable);
    }
  }

  std::optional<std::string> before_;
};

}  // namespace

TEST_CASE("doctor: reports versions, processor, memory and devices", "[tensor]") {
  const test::TempDir dir;
  const DoctorReport report = diagnose(dir.path());
  const std::string text = format_report(report);
  for (const char* part : {"LibTorch", "2.11", "AVX-512", "AMX", "threads", "memory available",
                           "NCCL", "devices", "cpu"}) {
    CHECK_THAT(text, Catch::Contains(part));
  }
  CHECK_THAT(report_json(report), Catch::Contains("\"problems\""));
}

TEST_CASE("doctor: a folder that is not there is a problem", "[tensor]") {
  CHECK(has_problem(diagnose("/no/such/folder"), "/no/such/folder"));
}

TEST_CASE("doctor: more threads than cores, and one on many, are problems", "[tensor]") {
  const test::TempDir dir;
  const int cores = static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
  {
    const Threads threads(cores + 3);
    CHECK(has_problem(diagnose(dir.path()),
                      str_cat(cores + 3, " threads on ", cores,
                              " cores: unset OMP_NUM_THREADS or set it to ", cores)));
  }
  {
    const Threads threads(1);
    CHECK(has_problem(diagnose(dir.path()), str_cat("1 thread on ", cores, " cores")) ==
          (cores > 1));
  }
  const Threads threads(0);
  CHECK_FALSE(has_problem(diagnose(dir.path()), kVariable));
}

TEST_CASE("doctor: a driver of NVIDIA that this build cannot use is a problem", "[tensor]") {
  const test::TempDir dir;
  const detail::CudaReport cuda = detail::report_cuda();
  CHECK_FALSE(has_problem(diagnose(dir.path(), dir / "proc"), "NVIDIA"));
  std::filesystem::create_directories(dir / "proc/driver/nvidia");
  test::write_file(dir / "proc/driver/nvidia/version", "NVRM version: 1\n");
  const DoctorReport report = diagnose(dir.path(), dir / "proc");
  CHECK(has_problem(report, "proc/driver/nvidia/version: NVIDIA's driver is loaded, but ") ==
        (cuda.num_devices == 0));
  CHECK(has_problem(report,
                    "this vgen is built without CUDA; to use the GPU install a CUDA "
                    "toolkit, then run scripts/build.sh cuda") == !cuda.is_compiled);
}

TEST_CASE("doctor: a processor without AVX2 and little memory are problems", "[tensor]") {
  const test::TempDir dir;
  std::filesystem::create_directories(dir / "proc");
  test::write_file(dir / "proc/cpuinfo", "model name\t: Old One\nflags\t\t: fpu sse sse2\n");
  test::write_file(dir / "proc/meminfo", "MemTotal: 2000000 kB\nMemAvailable: 1000000 kB\n");
  const DoctorReport report = diagnose(dir.path(), dir / "proc");
  CHECK_THAT(format_report(report), Catch::Contains("Old One"));
  CHECK(has_problem(report, "no AVX2"));
  CHECK(has_problem(report, "only 977 MiB of memory is available"));
}

}  // namespace vgen
