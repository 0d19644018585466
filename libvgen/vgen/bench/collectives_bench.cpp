#include "vgen/bench/collectives_bench.h"

#include <torch/torch.h>

#include <algorithm>
#include <cstdio>

#include "vgen/bench/detail/measure.h"
#include "vgen/core/error.h"
#include "vgen/dist/group.h"
#include "vgen/io/json.h"
#include "vgen/tensor/device.h"
#include "vgen/tensor/doctor.h"

namespace vgen::bench {

namespace {

void check(const CollectivesBenchConfig& config) {
  require(config.repeats >= 1 && config.timeout_s >= 1, ErrorCode::kInvalidArgument, "repeats ",
          config.repeats, " and timeout ", config.timeout_s, " s: expected both at least 1");
  for (const int64_t size : config.sizes_kib) {
    require(size >= 1 && size <= int64_t{16} << 20, ErrorCode::kInvalidArgument, "size ", size,
            " KiB: expected 1 to ", int64_t{16} << 20);
  }
  for (const std::string& name : config.collectives) {
    require(name == "all_gather" || name == "reduce_scatter" || name == "all_reduce",
            ErrorCode::kInvalidArgument, "collective '", printable(name),
            "': expected all_gather, reduce_scatter or all_reduce");
  }
}

// What all ranks have to agree on.
std::string identity_of(const CollectivesBenchConfig& config) {
  std::string text = str_cat(version_text(), "\ndtype ", config.dtype, "\nrepeats ", config.repeats,
                             "\ncollectives ", join(config.collectives, ","), "\nsizes");
  for (const int64_t size : config.sizes_kib) text += str_cat(" ", size);
  return text;
}

/// The slowest rank's.
double slowest(dist::Group& group, double seconds) {
  double most = 0;
  for (const std::string& text : group.all_gather_text(str_cat(seconds))) {
    double value = 0;
    parse_double(text, value);
    most = std::max(most, value);
  }
  return most;
}

CollectiveBenchRow run_case(dist::Group& group, const CollectivesBenchConfig& config,
                            c10::Device device, const std::string& collective, int64_t size_kib) {
  const auto options = torch::TensorOptions().dtype(parse_precision(config.dtype)).device(device);
  const int64_t ranks = group.size();
  const auto element = static_cast<int64_t>(options.dtype().itemsize());
  const int64_t part_size = std::max<int64_t>(1, size_kib * 1024 / element / ranks);
  // Zeros: sums of sums stay finite however often they are taken.
  const torch::Tensor whole = torch::zeros({part_size * ranks}, options);
  const torch::Tensor part = torch::zeros({part_size}, options);
  const auto body = [&] {
    if (collective == "all_gather") {
      group.start_all_gather(whole, part).wait();
    } else if (collective == "reduce_scatter") {
      group.start_reduce_scatter_sum(part, whole).wait();
    } else {
      group.start_all_reduce_sum(whole).wait();
    }
  };
  CollectiveBenchRow row{.collective = collective, .size_bytes = part_size * ranks * element};
  row.seconds = slowest(group, detail::median_seconds(device, config.repeats, body));
  row.algorithm_gb_s = static_cast<double>(row.size_bytes) / row.seconds / 1e9;
  const double others = static_cast<double>(ranks - 1) / static_cast<double>(ranks);
  row.bus_gb_s = row.algorithm_gb_s * others * (collective == "all_reduce" ? 2 : 1);
  return row;
}

}  // namespace

CollectivesBenchReport bench_collectives(const CollectivesBenchConfig& config) {
  check(config);
  const dist::Launch launch = dist::launch_from_environment();
  require(launch.world_size > 1, ErrorCode::kInvalidArgument,
          "bench collectives: this is the only process; start several with --ranks N on this "
          "machine, or with a launcher: mpirun -n N, srun -n N, or torchrun --standalone "
          "--no-python --nproc-per-node N, each before `vgen bench collectives`");
  const c10::Device device =
      parse_device(device_for_local_rank(config.device, launch.local_rank, num_cuda_devices()));
  share_threads(config.threads, launch.local_world_size);
  const auto group =
      dist::Group::join(launch, identity_of(config), 1000 * config.timeout_s, device.type());
  try {
    CollectivesBenchReport report{.rank = launch.rank,
                                  .ranks = launch.world_size,
                                  .ranks_per_host = launch.local_world_size,
                                  .launcher = launch.launcher,
                                  .device = device.str(),
                                  .dtype = config.dtype,
                                  .rows = {}};
    for (const std::string& collective : config.collectives) {
      for (const int64_t size_kib : config.sizes_kib) {
        report.rows.push_back(run_case(*group, config, device, collective, size_kib));
      }
    }
    const torch::Tensor last = torch::zeros({1}, device);
    group->all_reduce_sum(last);
    last.item<float>();  // nobody leaves while another still needs it
    return report;
  } catch (const std::exception& error) {
    group->report_failure(error.what());
    group->abandon();
    throw;
  }
}

std::string format_report(const CollectivesBenchReport& report) {
  std::string out = str_cat(report.ranks, " ranks");
  if (report.ranks_per_host > 0) out += str_cat(", ", report.ranks_per_host, " on this host");
  out += str_cat(", started by ", report.launcher, "; rank 0 on ", report.device, ", ",
                 report.dtype, "; medians of the slowest rank\n",
                 "collective            size        ms  algorithm GB/s  bus GB/s\n");
  for (const CollectiveBenchRow& row : report.rows) {
    char line[160];
    std::snprintf(line, sizeof(line), "%-14s  %10s  %8.3f  %14.3f  %8.3f\n", row.collective.c_str(),
                  format_bytes(static_cast<uint64_t>(row.size_bytes)).c_str(), row.seconds * 1e3,
                  row.algorithm_gb_s, row.bus_gb_s);
    out += line;
  }
  return out;
}

std::string report_json(const CollectivesBenchReport& report) {
  io::Json json = io::Json::object();
  json.set("ranks", io::Json::number(report.ranks));
  json.set("ranks_per_host", io::Json::number(report.ranks_per_host));
  json.set("launcher", io::Json::string(report.launcher));
  json.set("device", io::Json::string(report.device));
  json.set("dtype", io::Json::string(report.dtype));
  io::Json rows = io::Json::array();
  for (const CollectiveBenchRow& row : report.rows) {
    io::Json item = io::Json::object();
    item.set("collective", io::Json::string(row.collective));
    item.set("size_bytes", io::Json::number(row.size_bytes));
    item.set("seconds", io::Json::number(row.seconds));
    item.set("algorithm_gb_s", io::Json::number(row.algorithm_gb_s));
    item.set("bus_gb_s", io::Json::number(row.bus_gb_s));
    rows.add(std::move(item));
  }
  json.set("rows", std::move(rows));
  return io::dump_json(json, 1) + "\n";
}

}  // namespace vgen::bench
