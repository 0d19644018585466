#include "vgen/data/stats.h"

#include <algorithm>
#include <cmath>

#include "vgen/core/error.h"
#include "vgen/core/log.h"
#include "vgen/core/threads.h"
#include "vgen/data/detail/in_order.h"
#include "vgen/data/image.h"
#include "vgen/io/json.h"

namespace vgen::data {
namespace {

constexpr int64_t kSideEdges[] = {64, 128, 256, 384, 512, 768, 1024};

/// Of all pixels seen. Enough for 10^14 pixels: 1.5 billion images of 256 x 256.
struct PixelSums {
  uint64_t count = 0;
  std::array<uint64_t, 3> sum{}, square{};
};

struct Finding {
  ImageInfo info;
  uint64_t size_bytes = 0;
  PixelSums pixels;
  std::string reason;  // "" = a good image
};

PixelSums sum_pixels(const Image& image) {
  PixelSums sums{.count = static_cast<uint64_t>(image.width * image.height)};
  for (int64_t y = 0; y < image.height; ++y) {
    const uint8_t* row = image.row(y);
    std::array<uint64_t, 3> sum{}, square{};
    for (int64_t x = 0; x < image.width; ++x, row += 3) {
      for (int c = 0; c < 3; ++c) {
        sum[c] += row[c];
        square[c] += static_cast<uint64_t>(row[c] * row[c]);
      }
    }
    for (int c = 0; c < 3; ++c) {
      sums.sum[c] += sum[c];
      sums.square[c] += square[c];
    }
  }
  return sums;
}

Finding examine(const Dataset& dataset, int64_t index, bool headers_only) {
  Finding finding;
  try {
    const auto file = dataset.read(index);
    finding.size_bytes = file.size();
    finding.info = probe_image(file);
    if (!headers_only) finding.pixels = sum_pixels(decode_image(file));
  } catch (const Error& error) {
    finding.reason = error.what();
  }
  return finding;
}

SizeRange range_of(std::vector<int64_t> values) {
  if (values.empty()) return {};
  std::sort(values.begin(), values.end());
  return {values.front(), values[(values.size() - 1) / 2], values.back()};
}

std::vector<std::pair<std::string, int64_t>> side_histogram(const std::vector<int64_t>& sides) {
  std::vector<std::pair<std::string, int64_t>> histogram;
  histogram.emplace_back(str_cat("below ", kSideEdges[0]), 0);
  for (size_t i = 0; i + 1 < std::size(kSideEdges); ++i) {
    histogram.emplace_back(str_cat(kSideEdges[i], "..", kSideEdges[i + 1] - 1), 0);
  }
  histogram.emplace_back(str_cat(*std::prev(std::end(kSideEdges)), " and more"), 0);
  for (const int64_t side : sides) {
    const auto* bin = std::upper_bound(std::begin(kSideEdges), std::end(kSideEdges), side);
    ++histogram[static_cast<size_t>(bin - std::begin(kSideEdges))].second;
  }
  return histogram;
}

void set_mean(StatsReport& report, const PixelSums& sums) {
  report.has_pixels = sums.count > 0;
  if (!report.has_pixels) return;
  const auto count = static_cast<double>(sums.count);
  for (int c = 0; c < 3; ++c) {
    const double mean = static_cast<double>(sums.sum[c]) / count;
    const double variance = static_cast<double>(sums.square[c]) / count - mean * mean;
    report.mean[c] = mean / 255;
    report.deviation[c] = std::sqrt(std::max(variance, 0.0)) / 255;
  }
}

std::string count_text(int64_t count) { return format_count(static_cast<uint64_t>(count)); }

/// Spaces that bring a text of `size` to `width`.
std::string gap(size_t size, size_t width) {
  return std::string(width > size ? width - size : 0, ' ');
}

/// One line per entry that is not zero, with its share as a bar.
std::string bars(const std::vector<std::pair<std::string, int64_t>>& entries) {
  int64_t largest = 1;
  size_t width = 0;
  for (const auto& [name, count] : entries) {
    largest = std::max(largest, count);
    width = std::max(width, std::min(name.size(), size_t{40}));
  }
  std::string out;
  for (const auto& [name, count] : entries) {
    if (count == 0) continue;
    const auto length = static_cast<size_t>((count * 30 + largest - 1) / largest);
    const std::string shown = printable(name, 40), number = count_text(count);
    out += str_cat("  ", shown, gap(shown.size() + number.size(), width + 12), number);
    out += str_cat("  ", std::string(length, '#'), "\n");
  }
  return out;
}

std::string class_lines(const StatsReport& report) {
  auto classes = report.classes;
  if (classes.size() <= 20) return bars(classes);
  std::stable_sort(classes.begin(), classes.end(),
                   [](const auto& a, const auto& b) { return a.second > b.second; });
  const size_t middle = classes.size() / 2;
  return str_cat(
      "  most    ", count_text(classes.front().second), " (", printable(classes.front().first, 40),
      ")\n", "  median  ", count_text(classes[middle].second), "\n", "  fewest  ",
      count_text(classes.back().second), " (", printable(classes.back().first, 40), ")\n");
}

std::string range_text(const SizeRange& range) {
  return str_cat(range.smallest, " smallest, ", range.median, " median, ", range.largest,
                 " largest\n");
}

io::Json range_json(const SizeRange& range) {
  io::Json json = io::Json::object();
  json.set("smallest", io::Json::number(range.smallest));
  json.set("median", io::Json::number(range.median));
  json.set("largest", io::Json::number(range.largest));
  return json;
}

template <class Counts>
io::Json counts_json(const Counts& counts) {
  io::Json json = io::Json::object();
  for (const auto& [name, count] : counts) json.set(name, io::Json::number(count));
  return json;
}

io::Json channels_json(const std::array<double, 3>& values) {
  io::Json json = io::Json::array();
  for (const double value : values) json.add(io::Json::number(value));
  return json;
}

}  // namespace

StatsReport collect_stats(const StatsConfig& config) {
  check_worker_count("workers", config.workers);
  const Dataset dataset = Dataset::open(config.dataset);
  StatsReport report{.path = config.dataset.path, .images = dataset.size()};
  for (const std::string& name : dataset.classes()) report.classes.emplace_back(name, 0);
  std::vector<int64_t> widths, heights, sides;
  PixelSums total;
  Progress progress({.label = "stats", .unit = "images", .total = dataset.size()});
  detail::for_each_in_order(
      dataset.size(), config.workers,
      [&](int64_t index) { return examine(dataset, index, config.headers_only); },
      [&](int64_t index, const Finding& finding) {
        progress.update(index + 1);
        if (const int64_t label = dataset.label(index); label >= 0) {
          ++report.classes[static_cast<size_t>(label)].second;
        }
        report.size_bytes += finding.size_bytes;
        if (!finding.reason.empty()) {
          ++report.broken;
          log_warning("broken: ", finding.reason.starts_with(dataset.where(index))
                                      ? finding.reason
                                      : str_cat(dataset.where(index), ": ", finding.reason));
          return;
        }
        ++report.formats[finding.info.format];
        widths.push_back(finding.info.width);
        heights.push_back(finding.info.height);
        sides.push_back(std::min(finding.info.width, finding.info.height));
        total.count += finding.pixels.count;
        for (int c = 0; c < 3; ++c) {
          total.sum[c] += finding.pixels.sum[c];
          total.square[c] += finding.pixels.square[c];
        }
      });
  progress.finish();
  report.width = range_of(std::move(widths));
  report.height = range_of(std::move(heights));
  report.short_sides = side_histogram(sides);
  set_mean(report, total);
  return report;
}

std::string format_report(const StatsReport& report) {
  std::string out =
      str_cat(report.path, "\n", "images   ", count_text(report.images), " (",
              count_text(report.broken), " broken), ", format_bytes(report.size_bytes), "\n",
              "classes  ", count_text(static_cast<int64_t>(report.classes.size())), "\n");
  if (!report.classes.empty()) out += class_lines(report);
  out += "format\n" + bars({report.formats.begin(), report.formats.end()});
  out += "width    " + range_text(report.width);
  out += "height   " + range_text(report.height);
  out += "shorter side, pixels\n" + bars(report.short_sides);
  if (!report.has_pixels) return out;
  const auto channels = [](const std::array<double, 3>& v) {
    return str_cat(format_fixed(v[0], 4), " ", format_fixed(v[1], 4), " ", format_fixed(v[2], 4));
  };
  out += str_cat("mean     ", channels(report.mean), " (R G B, in 0..1)\n");
  return out + str_cat("std      ", channels(report.deviation), "\n");
}

std::string report_json(const StatsReport& report) {
  io::Json json = io::Json::object();
  json.set("path", io::Json::string(report.path));
  json.set("images", io::Json::number(report.images));
  json.set("broken", io::Json::number(report.broken));
  json.set("size_bytes", io::Json::number(static_cast<int64_t>(report.size_bytes)));
  json.set("classes", counts_json(report.classes));
  json.set("formats", counts_json(report.formats));
  json.set("width", range_json(report.width));
  json.set("height", range_json(report.height));
  json.set("short_sides", counts_json(report.short_sides));
  if (report.has_pixels) {
    json.set("mean", channels_json(report.mean));
    json.set("std", channels_json(report.deviation));
  }
  return io::dump_json(json, 2) + "\n";
}

}  // namespace vgen::data
