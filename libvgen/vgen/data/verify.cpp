#include "vgen/data/verify.h"

#include <algorithm>
#include <chrono>

#include "vgen/core/error.h"
#include "vgen/core/log.h"
#include "vgen/core/threads.h"
#include "vgen/data/detail/in_order.h"
#include "vgen/io/json.h"

namespace vgen::data {
namespace {

struct Finding {
  uint64_t size_bytes = 0;
  std::string reason;  // "" = a good image
};

Finding examine(const Dataset& dataset, int64_t index, const VerifyConfig& config) {
  Finding finding;
  try {
    const auto file = dataset.read(index);
    finding.size_bytes = file.size();
    const Image image = decode_image(file, config.max_pixels);
    check_min_side(image.width, image.height, config.min_side);
  } catch (const Error& error) {
    finding.reason = error.what();
    const std::string prefix = dataset.where(index) + ": ";  // an unreadable file names itself
    if (finding.reason.starts_with(prefix)) finding.reason.erase(0, prefix.size());
  }
  return finding;
}

}  // namespace

VerifyReport verify(const VerifyConfig& config) {
  check_worker_count("workers", config.workers);
  const auto begin = std::chrono::steady_clock::now();
  const Dataset dataset = Dataset::open(config.dataset);
  VerifyReport report{.path = config.dataset.path,
                      .images = dataset.size(),
                      .classes = static_cast<int64_t>(dataset.classes().size())};
  Progress progress({.label = "verify", .unit = "images", .total = dataset.size()});
  detail::for_each_in_order(
      dataset.size(), config.workers,
      [&](int64_t index) { return examine(dataset, index, config); },
      [&](int64_t index, Finding finding) {
        report.size_bytes += finding.size_bytes;
        if (!finding.reason.empty()) {
          report.broken.push_back({dataset.where(index), std::move(finding.reason)});
        }
        progress.update(index + 1, str_cat(report.broken.size(), " broken"));
      });
  progress.finish(str_cat(report.broken.size(), " broken"));
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return report;
}

std::string format_report(const VerifyReport& report) {
  std::string out =
      str_cat(report.path, ": ", format_count(static_cast<uint64_t>(report.images)), " images, ",
              format_count(static_cast<uint64_t>(report.classes)), " classes, ",
              format_bytes(report.size_bytes), ", ", report.broken.size(), " broken\n");
  for (const BrokenImage& image : report.broken) {
    out += str_cat("  ", image.path, ": ", image.reason, "\n");
  }
  return out;
}

std::string report_json(const VerifyReport& report) {
  io::Json json = io::Json::object();
  json.set("path", io::Json::string(report.path));
  json.set("images", io::Json::number(report.images));
  json.set("classes", io::Json::number(report.classes));
  json.set("size_bytes", io::Json::number(static_cast<int64_t>(report.size_bytes)));
  json.set("seconds", io::Json::number(report.seconds));
  json.set("num_broken", io::Json::number(static_cast<int64_t>(report.broken.size())));
  io::Json& broken = json.set("broken", io::Json::array());
  for (const BrokenImage& image : report.broken) {
    io::Json item = io::Json::object();
    item.set("path", io::Json::string(image.path));
    item.set("reason", io::Json::string(image.reason));
    broken.add(std::move(item));
  }
  return io::dump_json(json, 2) + "\n";
}

}  // namespace vgen::data
