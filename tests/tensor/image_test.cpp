#include "vgen/tensor/image.h"

#include "support/support.h"
#include "support/torch_support.h"

namespace vgen {

TEST_CASE("to_uint8: truncates 127.5 x + 128 after the clamp", "[tensor]") {
  const auto values = torch::tensor({-2.0F, -1.0F, 0.0F, 1.0F, 3.0F, 0.9999F});
  const auto image_B3HW = values.view({1, 1, 1, 6}).expand({1, 3, 1, 6});
  const auto pixel_BHW3 = to_uint8(image_B3HW);
  CHECK(pixel_BHW3.sizes() == torch::IntArrayRef({1, 1, 6, 3}));
  CHECK(torch::equal(pixel_BHW3.select(3, 1).flatten(),
                     torch::tensor({0, 0, 128, 255, 255, 255}, torch::kByte)));
  CHECK_THAT(test::error_of([] {
               to_uint8(torch::zeros({2, 2}));
             }),
             Catch::Contains("expected (B, 3, H, W), found [2, 2]"));
}

TEST_CASE("image_grid: rows, columns, padding", "[tensor]") {
  const auto image_BHW3 = torch::zeros({5, 4, 6, 3}, torch::kByte);
  const auto grid = image_grid(image_BHW3, 3, 1);
  CHECK(grid.sizes() == torch::IntArrayRef({2 * 5 + 1, 3 * 7 + 1, 3}));
  CHECK(grid[1][1][0].item<int>() == 0);
  CHECK(grid[0][0][0].item<int>() == 255);
  CHECK(grid[7][16][0].item<int>() == 255);  // the sixth place is empty
  CHECK(image_grid(image_BHW3, 100, 0).sizes() == torch::IntArrayRef({4, 30, 3}));
}

}  // namespace vgen
