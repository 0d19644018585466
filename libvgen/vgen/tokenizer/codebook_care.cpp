#include "vgen/tokenizer/codebook_care.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "vgen/core/error.h"
#include "vgen/kernels/nearest_code.h"

namespace vgen::tokenizer {
namespace {

/// B p^2 / V of each scale, (K, 1) like the averages.
torch::Tensor even_shares_K1(const MultiScaleQuantizerImpl& quantizer, int64_t batch) {
  std::vector<float> shares;
  for (const int64_t p : quantizer.patch_nums()) {
    shares.push_back(static_cast<float>(batch * p * p) /
                     static_cast<float>(quantizer.config().codebook_size));
  }
  return torch::tensor(shares).unsqueeze(1).to(quantizer.ema_vocab_hit_KV().device());
}

/// `count` different rows of weight_N, each drawn with a probability proportional to its weight:
/// the first to happen of N exponential clocks with these rates. Drawn on the CPU, so that every
/// device takes the same.
torch::Tensor draw_rows(const torch::Tensor& weight_N, int64_t count, Rng& rng) {
  std::vector<float> waits(static_cast<size_t>(weight_N.size(0)));
  for (float& wait : waits) wait = static_cast<float>(-std::log1p(-rng.uniform()));
  const torch::Tensor time_N = torch::tensor(waits).to(weight_N.device()) /
                               weight_N.clamp_min(std::numeric_limits<float>::min());
  return std::get<1>(time_N.sort(/*stable=*/true, /*dim=*/0, /*descending=*/false))
      .slice(0, 0, count);
}

}  // namespace

torch::Tensor used_codes_KV(const MultiScaleQuantizerImpl& quantizer, int64_t batch, double share) {
  const torch::NoGradGuard no_grad;
  return quantizer.ema_vocab_hit_KV().ge(share * even_shares_K1(quantizer, batch));
}

int64_t reseed_codes(MultiScaleQuantizerImpl& quantizer, const torch::Tensor& f_BZhw, double below,
                     Rng rng) {
  const torch::NoGradGuard no_grad;
  const int64_t batch = f_BZhw.size(0);
  const torch::Tensor is_alive_V = used_codes_KV(quantizer, batch, below).any(0);
  torch::Tensor free_M = is_alive_V.logical_not().nonzero().flatten();
  torch::Tensor alive_A = is_alive_V.nonzero().flatten();
  const int64_t num_dead = free_M.size(0);
  if (num_dead == 0 || !f_BZhw.isfinite().all().item<bool>()) return 0;

  const torch::Tensor even_K1 = even_shares_K1(quantizer, batch);
  torch::Tensor codebook_VZ = quantizer.codebook_VZ(), hits_KV = quantizer.ema_vocab_hit_KV();
  torch::Tensor rest = f_BZhw.to(torch::kFloat32);
  const std::vector<int64_t>& sides = quantizer.patch_nums();
  int64_t sides_left = std::accumulate(sides.begin(), sides.end(), int64_t{0});
  for (int64_t k = 0; k < static_cast<int64_t>(sides.size()); ++k) {
    const int64_t p = sides[static_cast<size_t>(k)];
    const torch::Tensor row_NZ = MultiScaleQuantizerImpl::area_rows(rest, p);
    const auto nearest_NZ = [&] {
      const torch::Tensor alive_AZ = codebook_VZ.index_select(0, alive_A);
      return alive_AZ.index_select(0, kernels::nearest_code(row_NZ, alive_AZ));
    };
    const int64_t part = (free_M.size(0) * p + sides_left - 1) / sides_left;  // rounded up
    const int64_t count = std::min(part, row_NZ.size(0));
    sides_left -= p;
    if (count > 0) {
      const torch::Tensor weight_N = alive_A.size(0) == 0
                                         ? torch::ones({row_NZ.size(0)}, row_NZ.options())
                                         : (row_NZ - nearest_NZ()).square().sum(1);
      const torch::Tensor moved_C = free_M.slice(0, 0, count);
      codebook_VZ.index_copy_(0, moved_C, row_NZ.index_select(0, draw_rows(weight_N, count, rng)));
      hits_KV.index_fill_(1, moved_C, 0);
      hits_KV[k].index_copy_(0, moved_C, even_K1[k].expand({count}));
      alive_A = torch::cat({alive_A, moved_C});
      free_M = free_M.slice(0, count);
    }
    const torch::Tensor h_BZpp = nearest_NZ().view({batch, p, p, -1}).permute({0, 3, 1, 2});
    rest = rest - quantizer.contribution(k, h_BZpp);
  }
  return num_dead - free_M.size(0);
}

torch::Tensor draw_last_scales(int64_t batch, int64_t num_scales, double dropout, Rng rng) {
  TORCH_INTERNAL_ASSERT(num_scales >= 2);
  std::vector<int64_t> last(static_cast<size_t>(batch), num_scales - 1);
  for (int64_t& scale : last) {
    const bool is_cut = rng.uniform() < dropout;
    const auto end = static_cast<int64_t>(rng.below(static_cast<uint64_t>(num_scales - 1)));
    if (is_cut) scale = end;
  }
  return torch::tensor(last);
}

}  // namespace vgen::tokenizer
