#include "vgen/extract/crops.h"

#include <algorithm>
#include <iterator>

#include "vgen/data/resample.h"
#include "vgen/data/transforms.h"

namespace vgen::extract {

std::vector<data::Image> make_crops(const data::Image& image, int64_t size,
                                    const std::vector<codes::CropSet>& sets) {
  using Kind = codes::CropSet::Kind;
  std::vector<data::Image> crops;
  for (const codes::CropSet& set : sets) {
    if (set.kind == Kind::kTenCrop || set.kind == Kind::kFiveCrop) {
      // Truncated as by Python's int(): 256 * 1.1 is 281, 256 * 1.05 is 268.
      const auto square = static_cast<int64_t>(static_cast<double>(size) * set.range);
      auto places = data::ten_crop(data::center_crop(image, square), size);
      places.resize(static_cast<size_t>(set.count()));
      std::ranges::move(places, std::back_inserter(crops));
      continue;
    }
    crops.push_back(data::center_crop(image, size));
    if (set.kind == Kind::kCenterFlip) crops.push_back(data::flip_horizontal(crops.back()));
  }
  return crops;
}

}  // namespace vgen::extract
