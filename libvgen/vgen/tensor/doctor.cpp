#include "vgen/tensor/doctor.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/native/DispatchStub.h>
#include <sys/statvfs.h>
#include <torch/cuda.h>
#include <torch/version.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "vgen/core/strings.h"
#include "vgen/tensor/detail/cuda_report.h"
#include "vgen/tensor/device.h"

namespace vgen {

namespace {

// The value behind "key ... :" in a /proc file, "" when there is none.
std::string proc_value(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with(key)) continue;
    const size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    const size_t begin = line.find_first_not_of(" \t", colon + 1);
    return begin == std::string::npos ? "" : line.substr(begin);
  }
  return "";
}

uint64_t memory_bytes(const std::string& proc, const std::string& key) {
  return std::strtoull(proc_value(proc + "/meminfo", key).c_str(), nullptr, 10) * 1024;
}

bool has_cpu_flag(const std::string& proc, const std::string& flag) {
  std::istringstream flags(proc_value(proc + "/cpuinfo", "flags"));
  for (std::string word; flags >> word;) {
    if (word == flag) return true;
  }
  return false;
}

const char* yes_no(bool value) { return value ? "yes" : "no"; }

DoctorReport::Section versions(const std::vector<std::pair<std::string, std::string>>& cuda_rows) {
  DoctorReport::Section section{"versions", {}};
  section.rows = {{"vgen", VGEN_VERSION},
                  {"LibTorch", TORCH_VERSION},
                  {"compiler", str_cat("g++ ", __VERSION__)},
                  {"oneDNN", yes_no(at::globalContext().hasMKLDNN())}};
  section.rows.insert(section.rows.end(), cuda_rows.begin(), cuda_rows.end());
  return section;
}

// Threads that spin for long slow each other down where other programs run beside them.
std::string waiting_threads() {
  const char* policy = std::getenv("OMP_WAIT_POLICY");
  const char* turns = std::getenv("GOMP_SPINCOUNT");
  if (turns != nullptr) return str_cat("spin for ", turns, " turns, then sleep");
  return policy == nullptr ? "spin for long (the library's default)"
                           : str_cat("OMP_WAIT_POLICY=", policy);
}

DoctorReport::Section processor(const std::string& proc, std::vector<std::string>& problems) {
  const auto cores = static_cast<int64_t>(sysconf(_SC_NPROCESSORS_ONLN));
  const int threads = at::get_num_threads();
  const auto has = [&](const char* flag) { return has_cpu_flag(proc, flag); };
  DoctorReport::Section section{"processor", {}};
  section.rows = {{"model", proc_value(proc + "/cpuinfo", "model name")},
                  {"cores online", str_cat(cores)},
                  {"threads of operators", str_cat(threads)},
                  {"AVX2", yes_no(has("avx2"))},
                  {"AVX-512", yes_no(has("avx512f"))},
                  {"AVX-512 bf16", yes_no(has("avx512_bf16"))},
                  {"AMX bf16", yes_no(has("amx_bf16"))},
                  {"LibTorch's kernels", at::get_cpu_capability()},
                  {"waiting threads", waiting_threads()}};
  if (!has("avx2")) {
    problems.emplace_back("no AVX2: all CPU work will be slow; use another machine");
  }
  if (threads > cores) {
    problems.push_back(str_cat(threads, " threads on ", cores,
                               " cores: unset OMP_NUM_THREADS or set it to ", cores));
  }
  if (threads == 1 && cores > 1 && std::getenv("OMP_NUM_THREADS") != nullptr) {
    problems.push_back(str_cat("1 thread on ", cores,
                               " cores: unset OMP_NUM_THREADS unless one process per core runs"));
  }
  return section;
}

DoctorReport::Section memory(const std::string& folder, const std::string& proc,
                             std::vector<std::string>& problems) {
  const uint64_t available = memory_bytes(proc, "MemAvailable");
  DoctorReport::Section section{"memory and disk", {}};
  section.rows = {{"memory", format_bytes(memory_bytes(proc, "MemTotal"))},
                  {"memory available", format_bytes(available)}};
  constexpr uint64_t kLowMemoryBytes = uint64_t{2} << 30;
  if (available < kLowMemoryBytes) {
    problems.push_back(str_cat("only ", format_bytes(available), " of memory is available"));
  }
  struct statvfs disk {};
  if (statvfs(folder.c_str(), &disk) != 0) {
    problems.push_back(str_cat(folder, ": cannot look at this folder"));
    return section;
  }
  const uint64_t free_bytes = uint64_t{disk.f_bavail} * disk.f_frsize;
  section.rows.emplace_back(str_cat("disk free at ", folder), format_bytes(free_bytes));
  constexpr uint64_t kLowDiskBytes = uint64_t{5} << 30;
  if (free_bytes < kLowDiskBytes) {
    problems.push_back(str_cat("only ", format_bytes(free_bytes), " of disk is free at ", folder,
                               ": checkpoints may not fit"));
  }
  if (access(folder.c_str(), W_OK) != 0) {
    problems.push_back(str_cat(folder, ": not writable; give runs another folder"));
  }
  return section;
}

// A GPU that lies idle: its driver is loaded, and nothing here can use it.
void check_driver(const std::string& proc, const detail::CudaReport& cuda,
                  std::vector<std::string>& problems) {
  const std::string path = proc + "/driver/nvidia/version";
  if (cuda.num_devices > 0 || access(path.c_str(), F_OK) != 0) return;
  problems.push_back(str_cat(
      path, ": NVIDIA's driver is loaded, but ",
      cuda.is_compiled
          ? "CUDA finds no device (see devices); in a container, pass the GPU through to it"
          : "this vgen is built without CUDA; to use the GPU install a CUDA toolkit, then run "
            "scripts/build.sh cuda"));
}

}  // namespace

std::string version_text() { return "vgen " VGEN_VERSION ", LibTorch " TORCH_VERSION; }

DoctorReport diagnose(const std::string& folder, const std::string& proc) {
  DoctorReport report;
  set_num_threads(std::getenv("OMP_NUM_THREADS") == nullptr ? 0 : at::get_num_threads());
  detail::CudaReport cuda = detail::report_cuda();
  report.problems = std::move(cuda.problems);
  check_driver(proc, cuda, report.problems);
  report.sections.push_back(versions(cuda.versions));
  report.sections.push_back(processor(proc, report.problems));
  report.sections.push_back(memory(folder, proc, report.problems));
  report.sections.push_back({"devices", std::move(cuda.devices)});
  return report;
}

std::string format_report(const DoctorReport& report) {
  size_t width = 0;
  for (const auto& section : report.sections) {
    for (const auto& [what, finding] : section.rows) width = std::max(width, what.size());
  }
  std::string text;
  for (const auto& section : report.sections) {
    text += str_cat(section.title, "\n");
    for (const auto& [what, finding] : section.rows) {
      text += str_cat("  ", what, std::string(width - what.size() + 2, ' '), finding, "\n");
    }
  }
  text += report.problems.empty() ? "no problems found\n" : "problems\n";
  for (const std::string& problem : report.problems) text += str_cat("  ! ", problem, "\n");
  return text;
}

std::string report_json(const DoctorReport& report) {
  nlohmann::ordered_json json;
  for (const auto& section : report.sections) {
    for (const auto& [what, finding] : section.rows)
      json["sections"][section.title][what] = finding;
  }
  json["problems"] = report.problems;
  return json.dump(2) + "\n";
}

}  // namespace vgen
