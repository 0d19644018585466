#include <algorithm>
#include <catch2/catch.hpp>
#include <limits>

#include "support/support.h"
#include "vgen/io/torch_file.h"

using namespace vgen;
using Catch::Contains;

TEST_CASE("pt: what is written reads back", "[io]") {
  const test::TempDir dir;
  const auto w = io::make_array<float>({2, 3}, {0, 1, 2, 3, 4, 5});
  const auto half = io::make_array(io::Dtype::kBFloat16, {2},
                                   [](auto out) { std::ranges::fill(out, std::byte{0x3f}); });
  const auto unsigned16 = io::make_array<uint16_t>({1}, {65535});
  io::TorchDict model;
  model.add("w", {io::ArrayView(w)})
      .add("tied", {io::ArrayView(w)})
      .add("b", {io::ArrayView(half)});
  model.add("u", {io::ArrayView(unsigned16)})
      .add("empty", {io::ArrayView{io::Dtype::kFloat32, {0, 3}, {}}});
  io::TorchDict root;
  root.add("model", {std::move(model)}).add("steps", {int64_t{1} << 40}).add("lr", {1e-4});
  root.add("name", {std::string("caf\xc3\xa9")}).add("none", {}).add("on", {true});
  root.add("list", {std::vector<io::TorchItem>{{int64_t{-1}}, {int64_t{70000}}}});
  io::write_torch_file(dir / "a.pt", root);

  const io::TorchFile file(dir / "a.pt");
  CHECK(file.root().find("steps")->integer() == int64_t{1} << 40);
  CHECK(file.root().find("lr")->real() == 1e-4);
  CHECK(file.root().find("name")->text() == "caf\xc3\xa9");
  CHECK(file.root().find("none")->kind == io::Value::Kind::kNone);
  CHECK(file.root().find("on")->boolean());
  CHECK(file.root().find("list")->items()[1]->integer() == 70000);
  const io::Value& back = *file.root().find("model");
  CHECK(file.read(back.find("w")->tensor()).as<float>()[5] == 5);
  CHECK(file.read(back.find("w")->tensor()).shape == std::vector<int64_t>{2, 3});
  CHECK(back.find("tied")->tensor().storage == back.find("w")->tensor().storage);
  CHECK(back.find("b")->tensor().dtype == io::Dtype::kBFloat16);
  CHECK(file.read(back.find("u")->tensor()).as<uint16_t>()[0] == 65535);
  CHECK(file.read(back.find("empty")->tensor()).data.empty());
}

TEST_CASE("pt: data is aligned, so that readers can map it", "[io]") {
  const test::TempDir dir;
  const auto a = io::make_array<uint8_t>({3}, {1, 2, 3});
  const auto b = io::make_array<double>({1}, {1});
  io::TorchDict root;
  root.add("a", {io::ArrayView(a)}).add("b", {io::ArrayView(b)});
  io::write_torch_file(dir / "a.pt", root);
  const io::TorchFile file(dir / "a.pt");
  for (const char* name : {"a", "b"}) {
    const auto data = file.read(file.root().find(name)->tensor()).data;
    CHECK(reinterpret_cast<uintptr_t>(data.data()) % 64 == 0);
  }
}

TEST_CASE("pt: the same contents give the same bytes", "[io]") {
  const test::TempDir dir;
  const auto a = io::make_array<float>({1}, {1});
  io::TorchDict root;
  root.add("a", {io::ArrayView(a)});
  io::write_torch_file(dir / "1.pt", root);
  io::write_torch_file(dir / "2.pt", root);
  CHECK(test::read_file(dir / "1.pt") == test::read_file(dir / "2.pt"));
}

TEST_CASE("pt: what cannot be written is refused", "[io]") {
  const test::TempDir dir;
  io::TorchDict twice;
  twice.add("a", {}).add("a", {});
  CHECK_THAT(test::error_of([&] { io::write_torch_file(dir / "a.pt", twice); }),
             Contains("a.pt: two entries are named 'a'"));
  io::TorchDict latin;
  latin.add("a", {std::string("\xff")});
  CHECK_THAT(test::error_of([&] { io::write_torch_file(dir / "a.pt", latin); }),
             Contains("is not UTF-8"));
}
