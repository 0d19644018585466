#include "vgen/checkpoint/detail/write_plan.h"

#include <torch/torch.h>

#include <algorithm>

#include "vgen/core/error.h"
#include "vgen/dist/group.h"
#include "vgen/io/crc32c.h"

namespace vgen::checkpoint::detail {

namespace {

/// Elements of a tensor that one rank writes.
struct Share {
  int64_t rank = 0;
  int64_t begin = 0;
  int64_t length = 0;
};

bool has_parts(const TensorFile& file) {
  return std::ranges::any_of(file.tensors, &NamedTensor::is_part);
}

// Begin and length of every part of every rank: (ranks, parts, 2).
at::Tensor gather_parts(const Snapshot& snapshot, dist::Group& group) {
  std::vector<int64_t> own;
  for (const TensorFile& file : snapshot.files) {
    for (const NamedTensor& item : file.tensors) {
      if (item.is_part()) own.insert(own.end(), {item.begin, item.tensor.numel()});
    }
  }
  const at::Tensor in = torch::tensor(own, at::kLong);
  const auto count = static_cast<int64_t>(own.size()) / 2;
  const at::Tensor out = at::empty({group.size() * count * 2}, at::kLong);
  if (count > 0) group.start_all_gather(out, in).wait();
  return out.view({group.size(), count, 2});
}

std::vector<Share> shares_of_part(const at::Tensor& parts_RP2, int64_t part, int64_t num_elements) {
  if (num_elements == 0) return {{}};
  const auto values = parts_RP2.accessor<int64_t, 3>();
  std::vector<Share> shares;
  for (int64_t rank = 0; rank < values.size(0); ++rank) {
    const Share share{rank, values[rank][part][0], values[rank][part][1]};
    const bool is_known = std::ranges::any_of(shares, [&](const Share& other) {
      return other.begin == share.begin && other.length == share.length;
    });
    if (share.length > 0 && !is_known) shares.push_back(share);
  }
  return shares;
}

/// The shards of one file.
class FilePlan {
 public:
  FilePlan(const TensorFile& file, const at::Tensor& parts_RP2, int64_t& next_part) : file_(file) {
    for (const NamedTensor& item : file.tensors) {
      const int64_t count =
          item.is_part() ? io::count_elements(item.whole_sizes) : item.tensor.numel();
      shares_.push_back(item.is_part() ? shares_of_part(parts_RP2, next_part++, count)
                                       : std::vector<Share>{{0, 0, count}});
      for (const Share& share : shares_.back()) names_[share.rank];
    }
    int64_t number = 0;
    const auto num_shards = static_cast<int64_t>(names_.size());
    for (auto& [rank, name] : names_) name = io::shard_name(file.name, ++number, num_shards);
  }

  std::vector<io::SlicedTensor> tensors() const {
    std::vector<io::SlicedTensor> tensors;
    for (size_t i = 0; i < shares_.size(); ++i) {
      const NamedTensor& item = file_.tensors[i];
      io::SlicedTensor tensor{
          .name = item.name,
          .dtype = to_io_dtype(item.tensor.scalar_type()),
          .shape = item.is_part() ? item.whole_sizes : item.tensor.sizes().vec(),
          .slices = {}};
      for (const Share& share : shares_[i]) {
        tensor.slices.push_back({names_.at(share.rank), share.begin, share.length});
      }
      try {
        io::check_slices(tensor);
      } catch (const Error& error) {
        throw_error(ErrorCode::kInternal, file_.name,
                    ": the parts of the ranks do not fit: ", error.what());
      }
      tensors.push_back(std::move(tensor));
    }
    return tensors;
  }

  void add_own(int64_t rank, std::vector<TensorFile>& own) const {
    if (!names_.contains(rank)) return;
    TensorFile shard{names_.at(rank), {}, file_.metadata};
    std::map<std::string, io::Part> parts;
    for (size_t i = 0; i < shares_.size(); ++i) {
      const auto share = std::ranges::find(shares_[i], rank, &Share::rank);
      if (share == shares_[i].end()) continue;
      const NamedTensor& item = file_.tensors[i];
      if (item.is_part()) parts[item.name] = {item.whole_sizes, share->begin};
      shard.tensors.push_back({item.name, item.is_part() ? item.tensor.view(-1) : item.tensor});
    }
    shard.metadata[std::string(io::kPartsKey)] = io::dump_parts(parts);
    own.push_back(std::move(shard));
  }

 private:
  const TensorFile& file_;
  std::vector<std::vector<Share>> shares_;  ///< of each tensor
  std::map<int64_t, std::string> names_;    ///< of the shard of each rank that writes one
};

}  // namespace

std::string outline(const Snapshot& snapshot) {
  std::string text;
  for (const TensorFile& file : snapshot.files) {
    text += str_cat(file.name, "\n");
    for (const NamedTensor& item : file.tensors) {
      text += str_cat(item.name, " ", c10::toString(item.tensor.scalar_type()), " ",
                      item.is_part() ? "part of " : "",
                      format_shape(item.is_part() ? item.whole_sizes : item.tensor.sizes().vec()),
                      "\n");
    }
  }
  return io::crc32c_text(io::crc32c(std::as_bytes(std::span(text.data(), text.size()))));
}

WritePlan plan_writing(const Snapshot& snapshot, dist::Group& group) {
  WritePlan plan;
  const at::Tensor parts_RP2 = gather_parts(snapshot, group);
  int64_t next_part = 0;
  for (const TensorFile& file : snapshot.files) {
    if (has_parts(file)) {
      const FilePlan shards(file, parts_RP2, next_part);
      plan.tensors[file.name] = shards.tensors();
      shards.add_own(group.rank(), plan.own);
    } else if (group.rank() == 0) {
      plan.own.push_back(file);
    }
  }
  return plan;
}

}  // namespace vgen::checkpoint::detail
