#include "vgen/tensor/device.h"

#include <torch/torch.h>

#include <catch2/catch.hpp>

#include "support/support.h"
#include "vgen/tensor/tf32.h"

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

TEST_CASE("device: each process of a machine takes a GPU of its own", "[tensor]") {
  for (const std::string text : {"auto", "cuda"}) {
    INFO(text);
    CHECK(device_for_local_rank(text, 0, 8) == "cuda:0");
    CHECK(device_for_local_rank(text, 3, 8) == "cuda:3");
    CHECK(device_for_local_rank(text, 3, 1) == "cuda:0");  // all that its launcher shows it
    CHECK(device_for_local_rank(text, 3, 0) == text);
    CHECK(test::error_of([&] { device_for_local_rank(text, 2, 2); }) ==
          "device '" + text +
              "': local rank 2 finds 2 CUDA devices, expected one for each process; start fewer, "
              "or give --device");
  }
  // What the user chose stays.
  CHECK(device_for_local_rank("cpu", 3, 8) == "cpu");
  CHECK(device_for_local_rank("cuda:1", 3, 8) == "cuda:1");
  CHECK(device_for_local_rank("cuda:1", 3, 2) == "cuda:1");
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

TEST_CASE("tf32: is of CUDA, and only where it is allowed", "[tensor]") {
  const c10::Device cuda(c10::kCUDA, 0);
  CHECK_FALSE(uses_tf32(cuda));  // LibTorch begins without
  allow_tf32(true);
  CHECK(uses_tf32(cuda));
  CHECK_FALSE(uses_tf32(c10::kCPU));
  allow_tf32(false);
  CHECK_FALSE(uses_tf32(cuda));
}

}  // namespace vgen
