#pragma once
// Small checkpoints whose tensors are cut over ranks.

#include <torch/torch.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "support/ranks.h"
#include "vgen/checkpoint/store.h"
#include "vgen/core/error.h"

namespace vgen::checkpoint {

using GroupPtr = std::unique_ptr<dist::Group>;

/// How parameters are cut: all of them as one row, or each by itself.
enum class Layout { kFlat, kEach };

inline constexpr const char* kFile = "model.safetensors";

/// Odd sizes, two dtypes, one tensor without elements. Each element is another one's no more.
inline NamedTensors parameters(double offset = 0) {
  const auto values = [&](std::vector<int64_t> sizes) {
    return (torch::arange(io::count_elements(sizes), torch::kFloat32) + offset).reshape(sizes);
  };
  return {{"one", values({1})},        {"three", values({3})},
          {"seven", values({7, 1})},   {"half", values({5, 3}).to(torch::kBFloat16)},
          {"matrix", values({9, 11})}, {"none", values({0, 4})}};
}

inline int64_t row_size(int64_t count, int64_t num_ranks) {
  return (count + num_ranks - 1) / num_ranks;
}

/// The elements [first, last) of a tensor as its part.
inline NamedTensor part_of(const NamedTensor& item, int64_t first, int64_t last) {
  const int64_t count = item.tensor.numel();
  const int64_t begin = std::clamp<int64_t>(first, 0, count),
                end = std::clamp<int64_t>(last, begin, count);
  return {item.name, item.tensor.view(-1).slice(0, begin, end).clone(), item.tensor.sizes().vec(),
          begin};
}

inline NamedTensors parts_of(const NamedTensors& tensors, int64_t rank, int64_t num_ranks,
                             Layout layout = Layout::kFlat) {
  int64_t total = 0, offset = 0;
  for (const NamedTensor& item : tensors) total += item.tensor.numel();
  NamedTensors parts;
  for (const NamedTensor& item : tensors) {
    const int64_t size = row_size(layout == Layout::kFlat ? total : item.tensor.numel(), num_ranks);
    const int64_t start = layout == Layout::kFlat ? offset : 0;
    parts.push_back(part_of(item, rank * size - start, (rank + 1) * size - start));
    offset += item.tensor.numel();
  }
  return parts;
}

inline NamedTensors zeros_like(NamedTensors tensors) {
  for (NamedTensor& item : tensors) item.tensor = torch::zeros_like(item.tensor);
  return tensors;
}

inline bool are_equal(const NamedTensors& a, const NamedTensors& b) {
  return std::ranges::equal(a, b, [](const NamedTensor& x, const NamedTensor& y) {
    return x.name == y.name && x.begin == y.begin && torch::equal(x.tensor, y.tensor);
  });
}

inline Snapshot snapshot_of(int64_t step, NamedTensors tensors) {
  tensors.push_back({"count", torch::full({}, step, torch::kLong)});  // a buffer
  io::Json state = io::Json::object();
  state.set("step", io::Json::number(step));
  return {.step = step,
          .files = {{kFile, std::move(tensors), {{"format", "pt"}}}},
          .state = std::move(state),
          .metrics = {}};
}

inline Snapshot parts_snapshot(int64_t step, const dist::Group& group,
                               Layout layout = Layout::kFlat) {
  const NamedTensors whole = parameters(static_cast<double>(step));
  return snapshot_of(step, parts_of(whole, group.rank(), group.size(), layout));
}

/// Every rank saves its parts.
inline void save_parts(const std::string& run, int64_t num_ranks, int64_t step,
                       Layout layout = Layout::kFlat) {
  test::run_ranks(num_ranks, [&](GroupPtr group) {
    CheckpointStore(run + "/checkpoints", {}, group.get())
        .save(parts_snapshot(step, *group, layout));
  });
}

/// The text of an index.json as earlier runs wrote it. Nothing compares its fields.
inline std::string without_checksum(const std::string& index) {
  io::Json root = io::parse_json(index);
  require(
      std::erase_if(root.members, [](const auto& field) { return field.first == "crc32c"; }) == 1,
      ErrorCode::kInternal, "the index has no checksum");
  return io::dump_json(root, 1) + "\n";
}

inline std::string message_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

/// What each rank's body returned.
inline std::vector<std::string> texts_of_ranks(
    int64_t num_ranks, const std::function<std::string(dist::Group&)>& body) {
  std::vector<std::string> texts(static_cast<size_t>(num_ranks));
  test::run_ranks(
      num_ranks, [&](GroupPtr group) { texts[static_cast<size_t>(group->rank())] = body(*group); });
  return texts;
}

}  // namespace vgen::checkpoint
