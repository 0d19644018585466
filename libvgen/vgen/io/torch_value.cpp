#include "vgen/io/torch_value.h"

#include <algorithm>

namespace vgen::io {

const Value* Value::find(std::string_view key) const {
  if (!has_entries()) return nullptr;
  for (const auto& [name, value] : entries()) {
    if (name->kind == Kind::kString && name->text() == key) return value;
  }
  return nullptr;
}

std::string_view value_kind_name(Value::Kind kind) {
  switch (kind) {
    case Value::Kind::kNone:
      return "None";
    case Value::Kind::kBool:
      return "a bool";
    case Value::Kind::kInt:
      return "an int";
    case Value::Kind::kFloat:
      return "a float";
    case Value::Kind::kString:
      return "a text";
    case Value::Kind::kBytes:
      return "bytes";
    case Value::Kind::kList:
      return "a list";
    case Value::Kind::kTuple:
      return "a tuple";
    case Value::Kind::kSet:
      return "a set";
    case Value::Kind::kDict:
      return "a dict";
    case Value::Kind::kNamespace:
      return "a Namespace";
    case Value::Kind::kSize:
      return "a torch.Size";
    case Value::Kind::kDtype:
      return "a dtype";
    case Value::Kind::kDevice:
      return "a device";
    case Value::Kind::kTensor:
      return "a tensor";
    case Value::Kind::kStorage:
      return "a storage";
    case Value::Kind::kSymbol:
      return "a class or function";
  }
  return "unknown";
}

namespace {

constexpr size_t kMaxShown = 8;

std::string format_items(const Value& value) {
  std::string out = value.kind == Value::Kind::kList ? "[" : "(";
  const auto& items = value.items();
  for (size_t i = 0; i < std::min(items.size(), kMaxShown); ++i) {
    if (i > 0) out += ", ";
    const bool is_nested = items[i]->has_items() || items[i]->has_entries();
    out += is_nested ? std::string(value_kind_name(items[i]->kind)) : format_value(*items[i]);
  }
  if (items.size() > kMaxShown) out += str_cat(", ... ", items.size(), " items");
  return out + (value.kind == Value::Kind::kList ? "]" : ")");
}

}  // namespace

std::string format_value(const Value& value) {
  switch (value.kind) {
    case Value::Kind::kBool:
      return value.boolean() ? "True" : "False";
    case Value::Kind::kInt:
      return std::to_string(value.integer());
    case Value::Kind::kFloat:
      return format_double(value.real());
    case Value::Kind::kString:
    case Value::Kind::kDtype:
    case Value::Kind::kDevice:
    case Value::Kind::kSymbol:
      return printable(value.text(), 200);
    case Value::Kind::kBytes:
      return str_cat(value.text().size(), " bytes");
    case Value::Kind::kDict:
    case Value::Kind::kNamespace:
      return str_cat(value_kind_name(value.kind), " of ", value.entries().size());
    case Value::Kind::kTensor:
      return str_cat(dtype_name(value.tensor().dtype), " ", format_shape(value.tensor().shape));
    case Value::Kind::kNone:
    case Value::Kind::kStorage:
      return std::string(value_kind_name(value.kind));
    default:
      return format_items(value);
  }
}

}  // namespace vgen::io
