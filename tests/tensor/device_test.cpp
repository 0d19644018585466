#include "vgen/tensor/device.h"

#include <torch/torch.h>

#include <catch2/catch.hpp>

#include "support/support.h"

namespace vgen {

TEST_CASE("device: words become devices", "[tensor]") {
  CHECK(parse_device("cpu").is_cpu());
  CHECK(parse_device("auto").is_cuda() == torch::cuda::is_available());
  for (const char* bad : {"gpu", "cuda:", "cuda:x", "cuda:-1", "CPU", "cuda:999"}) {
    CHECK(test::error_of([&] { parse_device(bad); }) ==
          std::string("device '") + bad + "': expected cpu, cuda, cuda:N or auto");
  }
  CHECK_THAT(test::error_of([] { parse_device("cuda:127"); }),
             Catch::Contains("this machine has") && Catch::Contains("vgen doctor"));
}

TEST_CASE("device: precisions have names", "[tensor]") {
  for (const char* name : kPrecisionNames) CHECK(precision_name(parse_precision(name)) == name);
  CHECK(test::error_of([] { parse_precision("fp8"); }) ==
        "precision 'fp8': expected fp32, bf16 or fp16");
}

TEST_CASE("device: the number of threads is the one asked for", "[tensor]") {
  CHECK(set_num_threads(1) == 1);
  CHECK(at::get_num_threads() == 1);
  CHECK(set_num_threads(0) >= 1);
}

}  // namespace vgen
