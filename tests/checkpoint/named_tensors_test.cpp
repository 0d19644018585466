#include "vgen/checkpoint/named_tensors.h"

#include <torch/torch.h>

#include <catch2/catch.hpp>

#include "support/support.h"
#include "support/torch_support.h"

using namespace vgen;
using namespace vgen::checkpoint;
using Catch::Matchers::Contains;

namespace {

struct PairImpl : torch::nn::Module {
  explicit PairImpl(int64_t width)
      : norm(register_module("norm", torch::nn::BatchNorm2d(width))),
        conv(register_module("conv", torch::nn::Conv2d(width, 2, 1))) {
    scale = register_parameter("scale", torch::ones({width}));
  }
  torch::nn::BatchNorm2d norm;
  torch::nn::Conv2d conv;
  torch::Tensor scale;
};
TORCH_MODULE(Pair);

io::StateDict state_of(const NamedTensors& tensors) {
  return {.tensors = as_arrays(tensors), .metadata = {}, .key = "model", .source = "a.pt"};
}

}  // namespace

TEST_CASE("named tensors: names and order are those of Python's state_dict", "[checkpoint]") {
  std::vector<std::string> names;
  for (const auto& item : named_state(*Pair(3))) names.push_back(item.name);
  CHECK(names == std::vector<std::string>{"scale", "norm.weight", "norm.bias", "norm.running_mean",
                                          "norm.running_var", "norm.num_batches_tracked",
                                          "conv.weight", "conv.bias"});
  CHECK(named_parameters(*Pair(3)).size() == 5);
}

TEST_CASE("named tensors: an array shares memory with its tensor, both ways", "[checkpoint]") {
  const auto tensor = torch::arange(6, torch::kFloat32).reshape({2, 3});
  const io::Array array = as_array(tensor);
  CHECK(array.data.data() == static_cast<const std::byte*>(tensor.const_data_ptr()));
  const auto back = as_tensor(array);
  CHECK(back.const_data_ptr() == tensor.const_data_ptr());
  CHECK_THAT(as_tensor(as_array(tensor.t())), test::AllClose(tensor.t(), test::kExact));
  CHECK(as_tensor(as_array(torch::empty({0, 4}))).sizes() == torch::IntArrayRef({0, 4}));
  CHECK(as_array(torch::tensor(int64_t{7})).shape.empty());
}

TEST_CASE("named tensors: every dtype survives", "[checkpoint]") {
  for (const auto dtype :
       {torch::kBool, torch::kByte, torch::kChar, torch::kShort, torch::kHalf, torch::kBFloat16,
        torch::kInt, torch::kFloat, torch::kLong, torch::kDouble, torch::kComplexFloat}) {
    const auto tensor = torch::tensor({0.0, 1.0, 0.0}).to(dtype);
    CHECK(torch::equal(as_tensor(as_array(tensor)), tensor));
  }
}

TEST_CASE("named tensors: a module is saved and loaded with the same bits", "[checkpoint]") {
  torch::manual_seed(1);
  Pair saved(3), loaded(3);
  saved->norm(torch::randn({2, 3, 4, 4}));  // moves the running statistics
  const test::TempDir folder;
  io::write_safetensors(folder / "a.safetensors", as_arrays(named_state(*saved)));
  load_into(*loaded, io::load_state_dict(folder / "a.safetensors"));
  const auto expected = named_state(*saved), actual = named_state(*loaded);
  for (size_t i = 0; i < expected.size(); ++i) {
    CHECK(torch::equal(actual[i].tensor, expected[i].tensor));
  }
}

TEST_CASE("named tensors: half precision files fill a float32 module", "[checkpoint]") {
  Pair module(3);
  auto tensors = named_state(*module);
  for (auto& item : tensors) {
    if (item.tensor.is_floating_point()) {
      item.tensor = torch::full_like(item.tensor, 0.5).to(torch::kBFloat16);
    }
  }
  load_into(*module, state_of(tensors));
  CHECK(module->scale.scalar_type() == torch::kFloat32);
  CHECK(module->scale[0].item<float>() == 0.5f);
}

TEST_CASE("named tensors: a strict load lists what is missing, unexpected and mis-shaped",
          "[checkpoint]") {
  Pair module(3);
  auto tensors = named_state(*module);
  for (auto& item : tensors) item.tensor = item.tensor.clone().zero_();
  tensors[0].tensor = torch::zeros({5});                  // scale
  tensors[1].name = "norm.wieght";                        // norm.weight
  tensors[5].tensor = torch::zeros({}, torch::kFloat32);  // norm.num_batches_tracked
  const auto before = module->conv->weight.clone();
  const std::string message = test::error_of([&] { load_into(*module, state_of(tensors)); });
  CHECK(message ==
        "a.pt ('model'): the tensors are not those of this model: 1 missing: norm.weight; "
        "1 unexpected: norm.wieght; 2 do not fit: scale is [5], expected [3], "
        "norm.num_batches_tracked is float32, expected int64; check the model section of the "
        "config, or the key that is read");
  CHECK(torch::equal(module->conv->weight, before));  // nothing was written
}

TEST_CASE("named tensors: long lists are cut", "[checkpoint]") {
  NamedTensors targets;
  for (const char digit : std::string("0123456789abcdefghij")) {
    targets.push_back({std::string{'w', digit}, torch::zeros({1})});
  }
  const std::string message = test::error_of([&] { load_into(targets, state_of({})); });
  CHECK_THAT(message, Contains("20 missing: w0, w1, w2, w3, w4, w5, w6, w7 and 12 more"));
}

TEST_CASE("named tensors: optional names may be missing or unexpected", "[checkpoint]") {
  Pair module(3);
  auto all = named_state(*module);
  all.erase(all.begin());
  all.push_back({"other", torch::zeros({1})});
  CHECK_NOTHROW(load_into(*module, state_of(all), {.optional = {"scale", "other"}}));
  CHECK_THAT(test::error_of([&] { load_into(*module, state_of(all), {.optional = {"scale"}}); }),
             Contains("1 unexpected: other"));
  CHECK_THAT(test::error_of([&] { load_into(*module, state_of(all), {.optional = {"other"}}); }),
             Contains("1 missing: scale"));
}
