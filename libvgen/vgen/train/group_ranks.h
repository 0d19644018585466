#pragma once
// The ranks of a run, for the layers that look at the batch of all of them.

#include <ATen/ATen.h>

#include "vgen/dist/group.h"
#include "vgen/nn/batch_ranks.h"

namespace vgen::train {

class GroupRanks : public nn::BatchRanks {
 public:
  /// `group` has to outlive this.
  explicit GroupRanks(dist::Group& group) : group_(group) {}

  int64_t rank() const override { return group_.rank(); }
  int64_t size() const override { return group_.size(); }
  void sum(const at::Tensor& value) override { group_.all_reduce_sum(value); }
  at::Tensor gather(const at::Tensor& value) override {
    std::vector<int64_t> sizes = value.sizes().vec();
    sizes.insert(sizes.begin(), size());
    at::Tensor all = at::empty(sizes, value.options());
    group_.start_all_gather(all, value).wait();
    return all;
  }

 private:
  dist::Group& group_;
};

}  // namespace vgen::train
