#include "vgen/tensor/doctor.h"

#include <algorithm>
#include <catch2/catch.hpp>

#include "support/support.h"

namespace vgen {

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
  const DoctorReport report = diagnose("/no/such/folder");
  CHECK(std::any_of(report.problems.begin(), report.problems.end(), [](const std::string& line) {
    return line.find("/no/such/folder") != std::string::npos;
  }));
}

}  // namespace vgen
