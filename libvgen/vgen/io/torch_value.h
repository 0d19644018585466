#pragma once
// What a PyTorch file holds: Python values as plain data.

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "vgen/io/array.h"

namespace vgen::io {

/// Raw elements that tensors are views of. Several tensors may share one.
struct TorchStorage {
  std::string key;             ///< its name in the file: "0", "1", ...
  std::optional<Dtype> dtype;  ///< none: untyped bytes
  int64_t num_elements = 0;    ///< bytes if untyped
};

/// A strided view of a storage; offset and strides count elements. Every element that the view
/// reaches lies inside the storage.
struct TorchTensor {
  const TorchStorage* storage = nullptr;
  Dtype dtype = Dtype::kFloat32;
  int64_t offset = 0;
  std::vector<int64_t> shape;
  std::vector<int64_t> stride;
  bool requires_grad = false;
  bool is_parameter = false;
};

/// A Python value. The file object owns all of them; pointers between them form no cycle, but a
/// value may be reached on several ways: walk with a budget (see flatten()).
struct Value {
  enum class Kind : uint8_t {
    kNone,
    kBool,
    kInt,
    kFloat,
    kString,
    kBytes,
    kList,
    kTuple,
    kSet,
    kDict,       ///< dict and OrderedDict
    kNamespace,  ///< argparse.Namespace: entries with text keys
    kSize,       ///< torch.Size: items are kInt
    kDtype,      ///< text: "torch.float32", or NumPy's "<f8"
    kDevice,     ///< text: "cuda:0"
    kTensor,
    kStorage,
    kSymbol,  ///< text: a class or function that the file names but does not call
  };
  using Entries = std::vector<std::pair<const Value*, const Value*>>;

  Kind kind = Kind::kNone;
  bool is_ordered = false;  ///< kDict: an OrderedDict
  int32_t depth = 0;        ///< levels of containers, itself included
  std::variant<std::monostate, bool, int64_t, double, std::string, std::vector<const Value*>,
               Entries, std::unique_ptr<TorchTensor>, const TorchStorage*>
      data;

  // The kind must be the right one.
  bool boolean() const { return std::get<bool>(data); }
  int64_t integer() const { return std::get<int64_t>(data); }
  double real() const { return std::get<double>(data); }
  const std::string& text() const { return std::get<std::string>(data); }
  const std::vector<const Value*>& items() const {
    return std::get<std::vector<const Value*>>(data);
  }
  const Entries& entries() const { return std::get<Entries>(data); }
  const TorchTensor& tensor() const { return *std::get<std::unique_ptr<TorchTensor>>(data); }

  bool has_entries() const { return kind == Kind::kDict || kind == Kind::kNamespace; }
  bool has_items() const {
    return kind == Kind::kList || kind == Kind::kTuple || kind == Kind::kSet || kind == Kind::kSize;
  }

  /// The entry with this text key; null when there is none or this has no entries.
  const Value* find(std::string_view key) const;
};

/// "a dict", "a tensor": for messages.
std::string_view value_kind_name(Value::Kind kind);

/// One line for people: "3", "[0, 1, 2, ... 40 items]", "a dict of 5", "float32 [2, 3]".
std::string format_value(const Value& value);

}  // namespace vgen::io
