#include "vgen/io/array.h"

#include <algorithm>
#include <catch2/catch.hpp>

#include "support/support.h"

using namespace vgen;
using Catch::Contains;

TEST_CASE("dtype: names are PyTorch's and read back", "[io]") {
  for (int i = 0; i <= static_cast<int>(io::Dtype::kComplex128); ++i) {
    const auto dtype = static_cast<io::Dtype>(i);
    CHECK(io::parse_dtype(io::dtype_name(dtype)) == dtype);
  }
  CHECK(io::item_size(io::Dtype::kBFloat16) == 2);
  CHECK(io::item_size(io::Dtype::kComplex128) == 16);
  CHECK(io::scalar_size(io::Dtype::kComplex64) == 4);
  CHECK_FALSE(io::parse_dtype("float").has_value());
}

TEST_CASE("array: element counts are checked for overflow", "[io]") {
  CHECK(io::count_elements({}) == 1);
  CHECK(io::count_elements({2, 0, int64_t{1} << 62, int64_t{1} << 62}) == 0);
  CHECK(io::count_bytes(io::Dtype::kFloat64, {3, 5}) == 120);
  CHECK_THAT(test::error_of([] {
               io::count_elements({2, -1});
             }),
             Contains("shape [2, -1] has a negative size"));
  CHECK_THAT(test::error_of([] { io::count_elements({0, -1}); }), Contains("negative size"));
  CHECK_THAT(test::error_of([] {
               io::count_elements({int64_t{1} << 32, int64_t{1} << 31});
             }),
             Contains("more than 2^63 elements"));
  CHECK_THAT(test::error_of([] { io::count_bytes(io::Dtype::kFloat64, {int64_t{1} << 60}); }),
             Contains("more than 2^63 bytes"));
}

TEST_CASE("array: typed access wants the right type", "[io]") {
  const auto array = io::make_array<int32_t>({2}, {3, 4});
  CHECK(array.as<int32_t>()[1] == 4);
  CHECK(array.num_elements() == 2);
  CHECK_THAT(test::error_of([&] { array.as<float>(); }),
             Contains("array holds int32, expected float32"));
  CHECK_THAT(test::error_of([] {
               io::make_array<float>({3}, {1, 2});
             }),
             Contains("2 values for another shape"));
}

TEST_CASE("array: copies share the bytes", "[io]") {
  io::Array copy;
  {
    const auto array = io::make_array<float>({1}, {2});
    copy = array;
    CHECK(copy.data.data() == array.data.data());
    CHECK(io::copy_array(array).data.data() != array.data.data());
  }
  CHECK(copy.as<float>()[0] == 2);
}
