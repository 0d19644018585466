#pragma once
// What `vgen doctor` tells: versions, processor, memory, devices, and what is misconfigured.

#include <string>
#include <utility>
#include <vector>

namespace vgen {

/// "vgen 0.1.0, LibTorch 2.11.0"
std::string version_text();

struct DoctorReport {
  struct Section {
    std::string title;
    std::vector<std::pair<std::string, std::string>> rows;  ///< (what, finding)
  };
  std::vector<Section> sections;
  std::vector<std::string> problems;  ///< what is misconfigured, and what to do about each
};

/// Looks at this process and this machine. `folder` is where runs would be written; `proc` is where
/// the system tells about itself (tests have another one).
DoctorReport diagnose(const std::string& folder, const std::string& proc = "/proc");

/// A table for people.
std::string format_report(const DoctorReport& report);
/// {"sections": {title: {what: finding}}, "problems": [...]}
std::string report_json(const DoctorReport& report);

}  // namespace vgen
