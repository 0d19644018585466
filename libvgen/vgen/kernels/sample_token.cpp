#include "vgen/kernels/sample_token.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "vgen/core/error.h"

namespace vgen::kernels {

namespace {
// Logits are put into buckets of equal width below the largest: a bucket is found by counting, and
// only what is in it is sorted.
constexpr int64_t kBuckets = 4096;
constexpr float kBucketsPerUnit = 64;  // the rest, 64 units below the largest, shares bucket 0
constexpr float kRemoved = -std::numeric_limits<float>::infinity();

void require_finite(bool is_finite) {
  require(is_finite, ErrorCode::kDataCorrupt,
          "the model's logits are not finite numbers: the checkpoint is damaged, or it needs "
          "another precision");
}

// Above 0, as both forms of sampling take it.
double divisor(const TokenFilter& filter) { return std::max(filter.temperature, 1e-5); }
}  // namespace

TokenSampler::TokenSampler(int64_t vocab_size, CpuIsa isa)
    : kernels_(&decode_kernels(isa)),
      logits_(vocab_size),
      weights_(vocab_size),
      counts_(kBuckets),
      sums_(kBuckets) {
  candidates_.reserve(vocab_size);
}

int64_t TokenSampler::bucket(float logit, float maximum) const {
  const float below = (maximum - logit) * kBucketsPerUnit;
  return below < static_cast<float>(kBuckets - 1) ? kBuckets - 1 - static_cast<int64_t>(below) : 0;
}

float TokenSampler::kth_largest(int64_t k, float maximum) {
  std::fill(counts_.begin(), counts_.end(), 0);
  for (const float logit : logits_) ++counts_[bucket(logit, maximum)];
  int64_t at = kBuckets - 1;
  while (counts_[at] < k) k -= counts_[at--];
  candidates_.clear();
  for (const float logit : logits_) {
    if (bucket(logit, maximum) == at) candidates_.push_back(logit);
  }
  const auto kth = candidates_.begin() + (k - 1);
  std::nth_element(candidates_.begin(), kth, candidates_.end(), std::greater<>());
  return *kth;
}

// The smallest logit that stays. weights_ holds exp(logit - maximum), 0 where removed.
float TokenSampler::nucleus_threshold(double top_p) {
  const float maximum = *std::max_element(logits_.begin(), logits_.end());
  std::fill(sums_.begin(), sums_.end(), 0.0);
  double total = 0;
  for (size_t i = 0; i < logits_.size(); ++i) {
    sums_[bucket(logits_[i], maximum)] += weights_[i];
    total += weights_[i];
  }
  const double limit = top_p * total;
  double before = 0;  // of all buckets above
  int64_t at = kBuckets - 1;
  while (at > 0 && before + sums_[at] <= limit) before += sums_[at--];
  candidates_.clear();
  for (const float logit : logits_) {
    if (logit != kRemoved && bucket(logit, maximum) == at) candidates_.push_back(logit);
  }
  std::sort(candidates_.begin(), candidates_.end(), std::greater<>());
  // A logit goes when the probability of those before it exceeds p; the first one always stays.
  float threshold = maximum;
  for (const float logit : candidates_) {
    if (before > limit) break;
    threshold = logit;
    before += std::exp(logit - maximum);
  }
  return threshold;
}

int64_t TokenSampler::draw(double uniform) const {
  const auto size = static_cast<int64_t>(weights_.size());
  double total = 0;
  for (const float weight : weights_) total += weight;
  const double target = uniform * total;
  double sum = 0;
  int64_t last = 0;
  for (int64_t i = 0; i < size; ++i) {
    if (weights_[i] == 0) continue;
    sum += weights_[i];
    last = i;
    if (sum > target) return i;
  }
  return last;
}

int64_t TokenSampler::sample(std::span<const float> conditional_V, std::span<const float> null_V,
                             double cfg_scale, const TokenFilter& filter, double uniform) {
  const auto size = static_cast<int64_t>(logits_.size());
  const float maximum = kernels_->guide(
      conditional_V.data(), null_V.empty() ? nullptr : null_V.data(), logits_.data(), size,
      static_cast<float>(cfg_scale), static_cast<float>(1 / divisor(filter)));
  require_finite(std::isfinite(maximum));
  if (filter.is_greedy) {
    return std::max_element(logits_.begin(), logits_.end()) - logits_.begin();
  }
  if (filter.top_k > 0 && filter.top_k < size) {
    const float threshold = kth_largest(filter.top_k, maximum);
    for (float& logit : logits_) logit = logit < threshold ? kRemoved : logit;
  }
  kernels_->exponentiate(logits_.data(), weights_.data(), size, maximum);
  for (int64_t i = 0; i < size; ++i) {
    if (logits_[i] == kRemoved) weights_[i] = 0;
  }
  if (filter.top_p < 1) {
    const float threshold = nucleus_threshold(filter.top_p);
    for (int64_t i = 0; i < size; ++i) {
      if (logits_[i] < threshold) {
        logits_[i] = kRemoved;
        weights_[i] = 0;
      }
    }
  }
  return draw(uniform);
}

at::Tensor sample_tokens(const at::Tensor& conditional_RV, const at::Tensor& null_RV,
                         double cfg_scale, const TokenFilter& filter, const at::Tensor& uniform_R) {
  at::Tensor logits_RV =
      null_RV.defined() ? null_RV + (conditional_RV - null_RV) * cfg_scale : conditional_RV;
  logits_RV = logits_RV / divisor(filter);
  const auto largest_R1 = logits_RV.amax(1, /*keepdim=*/true);
  require_finite(largest_R1.isfinite().all().item<bool>());
  if (filter.is_greedy) return logits_RV.argmax(1);
  const auto keep_from = [&](const at::Tensor& threshold_R1) {
    logits_RV.masked_fill_(logits_RV < threshold_R1, kRemoved);
  };
  if (filter.top_k > 0 && filter.top_k < logits_RV.size(1)) {
    const auto first_RK = std::get<0>(logits_RV.topk(filter.top_k, 1));
    keep_from(first_RK.amin(1, /*keepdim=*/true));
  }
  if (filter.top_p < 1) {
    const auto sorted_RV = std::get<0>(logits_RV.sort(1, /*descending=*/true));
    const auto weight_RV = sorted_RV.softmax(1, at::kDouble);
    const auto before_RV = weight_RV.cumsum(1) - weight_RV;
    keep_from(
        sorted_RV.masked_fill(before_RV > filter.top_p, std::numeric_limits<float>::infinity())
            .amin(1, /*keepdim=*/true));
  }
  const auto sum_RV = (logits_RV - largest_R1).exp().cumsum(1, at::kDouble);
  const auto target_R1 =
      sum_RV.slice(1, -1) * uniform_R.to(sum_RV.device(), /*non_blocking=*/true).unsqueeze(1);
  return (sum_RV <= target_R1).sum(1);
}

}  // namespace vgen::kernels
