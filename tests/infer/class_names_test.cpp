#include "vgen/infer/class_names.h"

#include <catch2/catch.hpp>

#include "support/support.h"

namespace vgen {

using infer::parse_classes;
using Labels = std::vector<int64_t>;

namespace {
std::string error_with(const std::string& text, int64_t num_classes = 1000) {
  return test::error_of(
      [&] { parse_classes(text, num_classes, infer::default_class_names(num_classes)); });
}
}  // namespace

TEST_CASE("class names: labels, ranges and names", "[infer]") {
  const auto names = infer::default_class_names(1000);
  CHECK(parse_classes("207", 1000, names) == Labels{207});
  CHECK(parse_classes("3-5, 207,3", 1000, names) == Labels{3, 4, 5, 207, 3});
  CHECK(parse_classes("Golden Retriever,otter", 1000, names) == Labels{207, 360});
  CHECK(parse_classes("cardigan,Cardigan", 1000, names) == Labels{474, 264});
  CHECK(parse_classes("0-9", 10, {}).size() == 10);
  // Well-known labels, so that a shifted list cannot pass.
  CHECK(parse_classes("tench,macaw,Siberian husky,lorikeet,toilet tissue", 1000, names) ==
        Labels{0, 88, 250, 90, 999});
}

TEST_CASE("class names: what is no class is refused", "[infer]") {
  CHECK(error_with("1000") == "class 1000: the model has classes 0 to 999");
  CHECK(error_with("-1") == "class -1: the model has classes 0 to 999");
  CHECK(error_with("8-3") == "class 8-3: the model has classes 0 to 999");
  CHECK(error_with("5-12", 10) == "class 5-12: the model has classes 0 to 9");
  CHECK(error_with("goldfinch retriever") ==
        "class 'goldfinch retriever': no such class, is it "
        "'golden retriever'?");
  CHECK(error_with("CARDIGAN") ==
        "class 'CARDIGAN': more than one class has this name in another case; give the label");
  CHECK(error_with("otter", 10) ==
        "class 'otter': this model's classes have no names here; give labels, or --class-names "
        "FILE");
  CHECK(error_with("") == "no class was asked for");
  CHECK(error_with("1,,2") ==
        "classes '1,,2': an empty item; expected labels, ranges such as 0-9, or names");
}

TEST_CASE("class names: a file of names", "[infer]") {
  const test::TempDir dir;
  test::write_file(dir / "names.txt", "zero\r\none \n two\n\n");
  CHECK(infer::read_class_names(dir / "names.txt", 3) ==
        std::vector<std::string>{"zero", "one", "two"});
  CHECK(test::error_of([&] { infer::read_class_names(dir / "names.txt", 4); }) ==
        (dir / "names.txt") + ": 3 names, but the model has 4 classes");
}

}  // namespace vgen
