#include "vgen/extract/verify.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "vgen/core/error.h"
#include "vgen/core/random.h"
#include "vgen/data/image.h"
#include "vgen/data/transforms.h"
#include "vgen/extract/crops.h"
#include "vgen/tensor/image.h"

namespace vgen::extract {
namespace {

/// The crop, and what is stored of it.
struct Sample {
  at::Tensor image_3HW;
  at::Tensor code_T;
};

Sample take_sample(const codes::CodeDataset& codes, const data::Dataset& images, int64_t number,
                   int64_t count) {
  const codes::CodeInfo& info = codes.info();
  const int64_t index = number * codes.size() / count;
  const auto set = static_cast<size_t>(number) % info.crop_sets.size();
  const int64_t crop =
      number / static_cast<int64_t>(info.crop_sets.size()) % info.crop_sets[set].count();
  const int64_t image = codes.image_index(index);
  const auto crops =
      make_crops(data::decode_image(images.read(image)), info.image_size, {info.crop_sets[set]});
  Sample sample{.image_3HW = data::to_tensor(crops[static_cast<size_t>(crop)]),
                .code_T = at::empty({info.num_tokens()}, at::kLong)};
  codes.read(index, set, crop,
             {sample.code_T.data_ptr<int64_t>(), static_cast<size_t>(info.num_tokens())});
  return sample;
}

/// Summed over the images.
double square_error(const at::Tensor& image_B3HW, const at::Tensor& recon_B3HW) {
  return at::pow(10, psnr_B(image_B3HW, recon_B3HW).div(-10)).sum().item<double>();
}

/// Another order of the codes of a crop, and how well they reconstruct then.
struct Rearrangement {
  std::string name;
  at::Tensor places;  // int64 (T): place t takes the code of places[t]
  double least_gain = 0;
  double error = 0;
  double psnr = 0;
};

/// Shuffled, and for a square grid the orders that an encoder and a decoder may differ by.
std::vector<Rearrangement> rearrangements(const codes::CodeInfo& info) {
  const int64_t tokens = info.num_tokens();
  const auto shuffled = random_permutation(tokens, Rng(0, Purpose::kAugment));
  std::vector<Rearrangement> list = {
      {.name = "shuffled", .places = at::tensor(shuffled), .least_gain = kLeastGain}};
  const auto places = at::arange(tokens);
  list.push_back({.name = "moved by one", .places = places.roll(1)});
  list.push_back({.name = "moved by one", .places = places.roll(-1)});
  if (info.patch_nums.empty()) {
    const auto grid = places.view(info.grid);
    list.push_back({.name = "mirrored", .places = grid.flip(1).flatten()});
    list.push_back({.name = "upside down", .places = grid.flip(0).flatten()});
    if (info.grid[0] == info.grid[1]) {
      list.push_back({.name = "transposed", .places = grid.t().flatten()});
    }
  }
  return list;
}

void check(const VerifyResult& result, const std::vector<Rearrangement>& others) {
  const double equal = static_cast<double>(result.equal_codes) / static_cast<double>(result.codes);
  require(equal >= kLeastEqualShare, ErrorCode::kDataCorrupt, "verify: only ",
          format_fixed(100 * equal, 2), " % of the codes of ", result.crops,
          " crops are those of encoding them again, expected at least ",
          format_fixed(100 * kLeastEqualShare, 0),
          " %: the codes are not of these images, or in another order");
  require(result.psnr >= result.psnr_again - kLeastGain, ErrorCode::kDataCorrupt,
          "verify: the decoded codes have a PSNR of ", format_fixed(result.psnr, 2),
          " dB, those encoded again ", format_fixed(result.psnr_again, 2), " dB");
  for (const Rearrangement& other : others) {
    require(result.psnr >= other.psnr + other.least_gain, ErrorCode::kDataCorrupt,
            "verify: the decoded codes have a PSNR of ", format_fixed(result.psnr, 2),
            " dB, the same codes ", other.name, " ", format_fixed(other.psnr, 2),
            " dB: encoder and decoder do not agree on the order of codes, or the tokenizer is not "
            "trained");
  }
}

}  // namespace

VerifyResult verify(const infer::ImageTokenizer& tokenizer, const codes::CodeDataset& codes,
                    const data::Dataset& images, int64_t crops, int64_t batch_size) {
  VerifyResult result{.crops = crops};
  const int64_t size = codes.info().image_size;
  auto others = rearrangements(codes.info());
  double error = 0, error_again = 0;
  for (int64_t begin = 0; begin < crops; begin += batch_size) {
    std::vector<at::Tensor> pixels, stored;
    for (int64_t i = begin; i < std::min(crops, begin + batch_size); ++i) {
      Sample sample = take_sample(codes, images, i, crops);
      pixels.push_back(std::move(sample.image_3HW));
      stored.push_back(std::move(sample.code_T));
    }
    const auto image_B3HW = at::stack(pixels), code_BT = at::stack(stored);
    const auto again_BT = tokenizer.encode(image_B3HW).flatten(1).cpu();
    result.codes += code_BT.numel();
    result.equal_codes += (again_BT == code_BT).sum().item<int64_t>();
    const auto error_of = [&](const at::Tensor& decoded_BT) {
      return square_error(image_B3HW, tokenizer.decode(decoded_BT, size, size));
    };
    error += error_of(code_BT);
    error_again += error_of(again_BT);
    for (auto& other : others) other.error += error_of(code_BT.index_select(1, other.places));
  }
  const auto psnr = [&](double sum) { return -10 * std::log10(sum / static_cast<double>(crops)); };
  result.psnr = psnr(error);
  result.psnr_again = psnr(error_again);
  for (auto& other : others) other.psnr = psnr(other.error);
  result.psnr_shuffled = others[0].psnr;
  check(result, others);
  return result;
}

}  // namespace vgen::extract
