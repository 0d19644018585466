#include "vgen/train/metrics.h"

#include <catch2/catch.hpp>
#include <map>

namespace vgen::train {
namespace {

std::map<std::string, double> rank_values(const std::vector<double>& values) {
  Metrics metrics;
  add_rank_values(metrics, "mb", values);
  return {metrics.begin(), metrics.end()};
}

TEST_CASE("metrics: a value of each rank, of many the first, the least and the largest",
          "[train]") {
  CHECK(rank_values({3}).empty());
  using Named = std::map<std::string, double>;
  CHECK(rank_values({3, 1}) == Named{{"mb_rank0", 3}, {"mb_rank1", 1}});
  std::vector<double> many(20, 5);
  CHECK(rank_values(std::vector<double>(16, 5)).size() == 16);
  many[17] = 9;
  many[18] = 2;
  many[19] = 2;
  const Named found = rank_values(many);
  CHECK(found.size() == 20);  // 16 and four
  CHECK(found.contains("mb_rank15"));
  CHECK(found.at("mb_max") == 9);
  CHECK(found.at("mb_max_rank") == 17);
  CHECK(found.at("mb_min") == 2);
  CHECK(found.at("mb_min_rank") == 18);
}

}  // namespace
}  // namespace vgen::train
