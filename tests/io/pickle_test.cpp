// Pickles by hand, inside the legacy stream: no checksum is in the way.

#include <catch2/catch.hpp>

#include "support/support.h"
#include "vgen/io/torch_file.h"

using namespace vgen;
using Catch::Contains;
using Kind = io::Value::Kind;

namespace {

template <size_t N>
std::string bytes(const char (&text)[N]) {
  return {text, N - 1};  // zeros included
}

const std::string kMagic = bytes("\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\x2e");
const std::string kVersion = bytes("\x80\x02M\xe9\x03.");
const std::string kSystem = bytes("\x80\x02}X\x0d\0\0\0little_endian\x88s.");
const std::string kNoKeys = bytes("\x80\x02].");

io::FileBytes view(const std::string& text) {
  return {"x.pt", std::as_bytes(std::span(text.data(), text.size())), nullptr};
}

// A file that holds the value of these opcodes (without PROTO and STOP).
std::string file_of(const std::string& opcodes) {
  return kMagic + kVersion + kSystem + "\x80\x02" + opcodes + "." + kNoKeys;
}

std::string complaint(const std::string& opcodes) {
  return test::error_of([&] {
    const std::string text = file_of(opcodes);
    const io::TorchFile file(view(text));
    file.flatten(file.root());
  });
}

std::string repeated(const std::string& text, int count) {
  std::string out;
  for (int i = 0; i < count; ++i) out += text;
  return out;
}

const std::string kScalar = "cnumpy.core.multiarray\nscalar\n";
// numpy.dtype("f8", False, True) with its state (3, "<", ...).
std::string numpy_dtype(const std::string& name, const std::string& order) {
  return "cnumpy\ndtype\n(U\x02" + name + "\x89\x88tR(K\x03U\x01" + order + "NNNtb";
}

}  // namespace

TEST_CASE("pickle: values that need no tensor", "[io]") {
  const auto root_of = [](const std::string& opcodes, auto check) {
    const std::string text = file_of(opcodes);
    const io::TorchFile file(view(text));
    check(file.root());
  };
  root_of(bytes("\x8a\x01\xff"), [](const auto& v) { CHECK(v.integer() == -1); });
  root_of(bytes("\x8a\0"), [](const auto& v) { CHECK(v.integer() == 0); });
  root_of(bytes("G\x3f\xf8\0\0\0\0\0\0"), [](const auto& v) { CHECK(v.real() == 1.5); });
  root_of(bytes("U\x02\xff\xfe"), [](const auto& v) { CHECK(v.kind == Kind::kBytes); });
  root_of(
      "c__builtin__\nset\n](K\x01K\x02"
      "e\x85R",
      [](const auto& v) {
        CHECK(v.kind == Kind::kSet);
        CHECK(v.items().size() == 2);
      });
  root_of(bytes("c_codecs\nencode\nX\x03\0\0\0a\xc3\xbfX\x06\0\0\0latin1\x86R"),
          [](const auto& v) { CHECK(v.text() == "a\xff"); });
  root_of(
      "ctorch\ndevice\nU\x04"
      "cudaK\x03\x86R",
      [](const auto& v) { CHECK(v.text() == "cuda:3"); });
  root_of(kScalar + "(" + numpy_dtype("f8", "<") + bytes("U\x08\0\0\0\0\0\0\xf8\x3ftR"),
          [](const auto& v) { CHECK(v.real() == 1.5); });
  root_of(kScalar + "(" + numpy_dtype("i4", ">") + bytes("U\x04\xff\xff\xff\xfetR"),
          [](const auto& v) { CHECK(v.integer() == -2); });
  root_of(kScalar + "(" + numpy_dtype("b1", "|") + "U\x01\x01tR",
          [](const auto& v) { CHECK(v.boolean()); });
}

TEST_CASE("pickle: sharing is kept and bounded", "[io]") {
  // 40 pairs, each of the one before with itself: 2^40 leaves.
  std::string bomb = "K\x01\x85";
  for (char i = 0; i < 40; ++i) bomb += std::string("q") + i + "h" + i + "\x86";
  CHECK_THAT(complaint(bomb), Contains("x.pt: pickle: shared values expand to far more"));
  // One long list, referred to many times, costs its length each time.
  std::string wide = "(](" + repeated("K\x01", 20000) + "eq";
  wide.push_back('\0');
  wide += repeated(bytes("h\0"), 20000) + "t";
  CHECK_THAT(complaint(wide), Contains("shared values expand to far more"));
}

TEST_CASE("pickle: nesting is bounded, however it is built", "[io]") {
  CHECK_THAT(complaint(repeated("]", 1001) + repeated("a", 1000)),
             Contains("nested deeper than 1000 levels"));
  CHECK_THAT(complaint("N" + repeated("\x85", 1001)), Contains("nested deeper than 1000 levels"));
  // From the outside in: each list is filled after it was put into another.
  std::string chain = "(";  // 1100 empty lists in slots, then list i into list i - 1
  const auto slot = [](uint32_t i) { return std::string(reinterpret_cast<const char*>(&i), 4); };
  for (uint32_t i = 0; i < 1100; ++i) chain += "]r" + slot(i);
  chain += "t(";
  for (uint32_t i = 1; i < 1100; ++i) chain += "j" + slot(i - 1) + "j" + slot(i) + "a";
  chain += "t\x86";
  CHECK_THAT(complaint(chain), Contains("nested deeper than 1000 levels"));
  CHECK_THAT(complaint(bytes("]q\0h\0a")), Contains("a value contains itself"));
}

TEST_CASE("pickle: what torch.save never writes is refused", "[io]") {
  CHECK_THAT(complaint("cos\nsystem\n"), Contains("x.pt: object: byte 2: pickle: refused: the file "
                                                  "asks for os.system, which is not on the list"));
  CHECK_THAT(complaint("ctorch._utils\n_rebuild_tensor\n"), Contains("torch._utils._rebuild_ten"));
  CHECK_THAT(complaint("cargparse\nNamespace\n)R"), Contains("a call of argparse.Namespace"));
  CHECK_THAT(complaint("ccollections\nOrderedDict\n)\x81"),
             Contains("a new object of collections"));
  CHECK_THAT(complaint("}}b"), Contains("a state of a dict for a dict"));
  CHECK_THAT(complaint("ccollections\nOrderedDict\n)RNb"), Contains("a state of None for a dict"));
  CHECK_THAT(complaint("NNR"), Contains("a call of None, expected a function"));
  CHECK_THAT(complaint("ccollections\nOrderedDict\nNR"), Contains("called with None"));
  CHECK_THAT(complaint("ccollections\nOrderedDict\n]\x85R]a"), Contains("appends to a dict"));
  CHECK_THAT(complaint("ccollections\nOrderedDict\n](Ne\x85R"), Contains("expected [key, value]"));
  CHECK_THAT(complaint("ctorch\nSize\nK\x01\x85R"), Contains("expected a tuple of sizes"));
  CHECK_THAT(complaint("]Q"), Contains("persistent id: called with a list"));
  CHECK_THAT(complaint("}]Ns"), Contains("a list cannot be a dict key"));
  CHECK_THAT(complaint("}(Nu"), Contains("a dict key without a value"));
  CHECK_THAT(complaint("}(U\x01"
                       "aNU\x01"
                       "aNu"),
             Contains("the key 'a' occurs twice"));
  CHECK_THAT(complaint("t"), Contains("no mark on its stack"));
  CHECK_THAT(complaint("(a"), Contains("takes a value from an empty stack"));
  CHECK_THAT(complaint("N("), Contains("ends with 1 values on its stack"));
  CHECK_THAT(complaint(bytes("\x8a\x09\1\1\1\1\1\1\1\1\1")), Contains("an integer of 9 bytes"));
  CHECK_THAT(complaint(bytes("X\x01\0\0\0\xff")), Contains("is not UTF-8"));
  CHECK_THAT(complaint("\x93"), Contains("refused: opcode 147 is not one that torch.save writes"));
  CHECK_THAT(complaint("c_codecs\nencode\nU\x01"
                       "aU\x03"
                       "hex\x86R"),
             Contains("encoding 'hex', expected latin1"));
  CHECK_THAT(complaint(kScalar + "(" + numpy_dtype("O8", "|") + "U\x01\x01tR"),
             Contains("numpy scalar: type '|O8' is not supported"));
  CHECK_THAT(complaint(kScalar + "(" + numpy_dtype("f8", "<") + "U\x01\x01tR"),
             Contains("numpy scalar: 1 bytes for type '<f8'"));
}

TEST_CASE("legacy: broken streams are told apart", "[io]") {
  const auto error = [](const std::string& text) {
    return test::error_of([&] { io::TorchFile file(view(text)); });
  };
  const std::string none = bytes("\x80\x02N.");
  CHECK_THAT(error(kMagic), Contains("x.pt: version: byte 0: pickle: needs 1 bytes"));
  CHECK_THAT(error(kMagic + none), Contains("legacy file: version None, expected 1001"));
  CHECK_THAT(error(kMagic + kVersion + none), Contains("no little_endian in None"));
  CHECK_THAT(error(kMagic + kVersion + bytes("\x80\x02}X\x0d\0\0\0little_endian\x89s.")),
             Contains("big-endian, which is not supported; load and save it with Python"));
  CHECK_THAT(error(kMagic + kVersion + kSystem + none + none), Contains("expected a list"));
  CHECK_THAT(error(kMagic + kVersion + kSystem + none +
                   bytes("\x80\x02](U\x01"
                         "7e.")),
             Contains("storage '7' belongs to no tensor"));
  CHECK_THAT(error(file_of("N") + "x"), Contains("1 bytes follow its last storage"));
}
