#include "vgen/io/torch_file.h"

#include <catch2/catch.hpp>
#include <cmath>
#include <filesystem>

#include "support/support.h"
#include "vgen/io/json.h"

using namespace vgen;
using Catch::Contains;
using io::Json;
using io::Value;

namespace {

std::string hex(std::span<const std::byte> bytes) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string out;
  for (const std::byte b : bytes) {
    out.push_back(kDigits[std::to_integer<int>(b) >> 4]);
    out.push_back(kDigits[std::to_integer<int>(b) & 15]);
  }
  return out;
}

Json ints(const std::vector<int64_t>& numbers) {
  Json out = Json::array();
  for (const int64_t number : numbers) out.add(Json::number(number));
  return out;
}

Json tagged(const char* tag, Json content) {
  Json out = Json::object();
  out.set(tag, std::move(content));
  return out;
}

// The typed tree of the expectations: see the README of the golden files.
class Typed {
 public:
  explicit Typed(const io::TorchFile& file) : file_(file) {}

  Json of(const Value& value) const {
    switch (value.kind) {
      case Value::Kind::kNone:
        return Json::null();
      case Value::Kind::kBool:
        return Json::boolean(value.boolean());
      case Value::Kind::kInt:
        return tagged("$int", Json::string(std::to_string(value.integer())));
      case Value::Kind::kFloat:
        return tagged("$float", Json::number(value.real()));
      case Value::Kind::kString:
        return Json::string(value.text());
      case Value::Kind::kDtype:
        return tagged("$dtype", Json::string(value.text()));
      case Value::Kind::kDevice:
        return tagged("$device", Json::string(value.text()));
      case Value::Kind::kList:
        return tagged("$list", items(value));
      case Value::Kind::kTuple:
        return tagged("$tuple", items(value));
      case Value::Kind::kSize: {
        std::vector<int64_t> sizes;
        for (const Value* item : value.items()) sizes.push_back(item->integer());
        return tagged("$size", ints(sizes));
      }
      case Value::Kind::kDict: {
        Json out = tagged("$dict", entries(value));
        out.set("ordered", Json::boolean(value.is_ordered));
        return out;
      }
      case Value::Kind::kNamespace: {
        Json members = Json::object();
        for (const auto& [key, item] : value.entries()) members.set(key->text(), of(*item));
        return tagged("$namespace", std::move(members));
      }
      case Value::Kind::kTensor:
        return tagged("$tensor", tensor(value.tensor()));
      default:
        return Json::string("unexpected kind");
    }
  }

 private:
  Json items(const Value& value) const {
    Json out = Json::array();
    for (const Value* item : value.items()) out.add(of(*item));
    return out;
  }
  Json entries(const Value& value) const {
    Json out = Json::array();
    for (const auto& [key, item] : value.entries()) {
      Json& pair = out.add(Json::array());
      pair.add(of(*key));
      pair.add(of(*item));
    }
    return out;
  }
  Json tensor(const io::TorchTensor& tensor) const {
    const io::Array array = file_.read(tensor);
    Json out = Json::object();
    out.set("dtype", Json::string(io::dtype_name(tensor.dtype)));
    out.set("shape", ints(tensor.shape));
    out.set("stride", ints(tensor.stride));
    out.set("storage_offset", Json::number(tensor.offset));
    out.set("requires_grad", Json::boolean(tensor.requires_grad));
    out.set("is_parameter", Json::boolean(tensor.is_parameter));
    out.set("contiguous_le_hex", Json::string(hex(array.data)));
    return out;
  }

  const io::TorchFile& file_;
};

// "$float" holds Python's text of the number: compared as numbers, all else as text.
std::string difference(const Json& actual, const Json& expected, const std::string& path) {
  if (const Json* text = expected.find("$float")) {
    const Json* real = actual.find("$float");
    double number = 0;
    const bool is_equal = real != nullptr && parse_double(text->text, number) &&
                          (real->real == number || (std::isnan(number) && std::isnan(real->real)));
    return is_equal ? "" : path + ": not the float " + text->text;
  }
  if (actual.kind != expected.kind || actual.integer != expected.integer ||
      actual.text != expected.text || actual.items.size() != expected.items.size() ||
      actual.members.size() != expected.members.size()) {
    return path + ": " + io::dump_json(actual) + " instead of " + io::dump_json(expected);
  }
  for (size_t i = 0; i < actual.items.size(); ++i) {
    const auto found =
        difference(actual.items[i], expected.items[i], path + "." + std::to_string(i));
    if (!found.empty()) return found;
  }
  for (const auto& [name, member] : expected.members) {
    const Json* other = actual.find(name);
    if (other == nullptr) return path + ": no " + name;
    const auto found = difference(*other, member, path + "." + name);
    if (!found.empty()) return found;
  }
  return "";
}

// Opens a file and reads every tensor of it.
void read_all(const std::string& path) {
  const io::TorchFile file(path);
  for (const auto& leaf : file.flatten(file.root())) {
    if (leaf.value->kind == Value::Kind::kTensor) file.read(leaf.value->tensor());
  }
}

}  // namespace

TEST_CASE("pt: every valid file gives the expected tree, bit for bit", "[io][golden]") {
  const std::string name =
      GENERATE("dtypes", "views", "params", "param_with_state", "state_dict", "ckpt_llamagen",
               "ckpt_var", "fsdp_full_state", "containers", "many", "v3_dtypes", "legacy",
               "legacy_py2", "zip64", "old_layout", "unaligned_stored", "big_endian");
  CAPTURE(name);
  const io::TorchFile file(test::golden("torch-save/valid/" + name + ".pt"));
  const Json expected =
      io::parse_json(test::read_file(test::golden("torch-save/expected/" + name + ".json")));
  CHECK(difference(Typed(file).of(file.root()), expected, name) == "");
}

TEST_CASE("pt: every hostile file is refused with its reason", "[io][golden]") {
  const auto [name, reason] = GENERATE(table<std::string, std::string>({
      {"truncated_half", "zip: no end record, the file is cut off"},
      {"truncated_tail", "zip: no end record, the file is cut off"},
      {"os_system", "the file asks for posix.system"},
      {"builtins_eval", "the file asks for __builtin__.eval"},
      {"global_on_stack_only", "the file asks for subprocess.Popen"},
      {"stack_global_proto4", "pickle: protocol 4, expected 2"},
      {"newobj_build_setstate", "the file asks for os.system"},
      {"inst_opcode", "refused: opcode 105 ('i')"},
      {"huge_declared_size", "1152921504606846976 elements of 4 bytes are declared"},
      {"huge_product_overflow", "has more than 2^63"},
      {"huge_view_stride0", "would take 4.00 TiB, more than the file itself"},
      {"huge_record_size", "claims 2147483653 bytes, beyond the 146 that are left"},
      {"storage_offset_out_of_range", "reach element 6 of a storage of 6"},
      {"stride_out_of_range", "of a storage of 6"},
      {"negative_stride", "argument 3 holds -3, expected integers of at least 0"},
      {"negative_size", "argument 2 holds -2, expected integers of at least 0"},
      {"negative_offset", "argument 1 is -1, expected at least 0"},
      {"rank_mismatch", "2 sizes but 1 strides"},
      {"storage_record_short", "6 elements of 4 bytes are declared, but the file has 20 bytes"},
      {"storage_missing", "zip: no record data/"},
      {"storage_key_path", "expected digits"},
      {"persistent_not_storage", "expected 'storage'"},
      {"same_key_two_types", "is used with two types or sizes"},
      {"wrong_crc", "does not match its CRC-32"},
      {"wrong_crc_pickle", "does not match its CRC-32"},
      {"not_a_zip", "which is none of .safetensors, .pt, .pth, .npy and .npz"},
      {"empty_file", "the file is empty (0 bytes)"},
      {"html_error_page", "is a web page, not a checkpoint"},
      {"git_lfs_pointer", "is a git-lfs pointer, not the file itself: run `git lfs pull`"},
      {"deep_nesting", "nested deeper than 1000 levels"},
      {"memo_bomb", "ends with 61 values on its stack, expected one"},
      {"stack_underflow", "takes a value from an empty stack"},
      {"memo_missing", "memo slot 99 is read before it is set"},
      {"no_stop", "the pickle is cut off"},
      {"string_length_lie", "the pickle is cut off"},
      {"no_data_pkl", "a zip without data.pkl"},
      {"duplicate_record", "zip: two members are called"},
      {"legacy_truncated", "it is cut off"},
      {"legacy_huge_storage", "elements are declared, 1125899906842624 stored"},
  }));
  CAPTURE(name);
  const std::string path = test::golden("torch-save/hostile/" + name + ".pt");
  const std::string message = test::error_of([&] { read_all(path); });
  CHECK_THAT(message, Contains(reason));
  CHECK_THAT(message, Catch::StartsWith(path + ": "));
}

TEST_CASE("pt: the list of hostile files is complete", "[io][golden]") {
  size_t count = 0;
  for (const auto& entry :
       std::filesystem::directory_iterator(test::golden("torch-save/hostile"))) {
    count += entry.is_regular_file() ? 1 : 0;
  }
  CHECK(count == 39);
}
