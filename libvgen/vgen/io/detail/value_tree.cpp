#include <algorithm>
#include <unordered_set>

#include "vgen/core/error.h"
#include "vgen/io/detail/unpickler.h"

namespace vgen::io::detail {
namespace {

constexpr int32_t kMaxDepth = 1000;
constexpr int32_t kInProgress = -1;

void check_keys(const Value::Entries& entries) {
  std::unordered_set<std::string_view> texts;
  std::unordered_set<int64_t> numbers;
  for (const auto& [key, value] : entries) {
    const bool is_new = key->kind == Value::Kind::kString ? texts.insert(key->text()).second
                        : key->kind == Value::Kind::kInt  ? numbers.insert(key->integer()).second
                                                          : true;
    require(is_new, ErrorCode::kDataCorrupt, "pickle: the key '", format_value(*key),
            "' occurs twice in one dict");
  }
}

// The children of a container; entries give their keys and values.
size_t count_children(const Value& value) {
  if (value.has_items()) return value.items().size();
  return value.has_entries() ? 2 * value.entries().size() : 0;
}
const Value* child(const Value& value, size_t i) {
  if (value.has_items()) return value.items()[i];
  const auto& entry = value.entries()[i / 2];
  return i % 2 == 0 ? entry.first : entry.second;
}

}  // namespace

void check_tree(Value& root) {
  struct Frame {
    Value* value;
    size_t next = 0;
    int32_t deepest = 0;
  };
  std::vector<Frame> open;
  const auto enter = [&](Value* value) {
    require(open.size() < static_cast<size_t>(kMaxDepth), ErrorCode::kDataCorrupt,
            "pickle: values nested deeper than ", kMaxDepth, " levels");
    if (value->has_entries()) check_keys(value->entries());
    value->depth = kInProgress;
    open.push_back({value});
  };
  enter(&root);
  while (!open.empty()) {
    Frame& frame = open.back();
    if (frame.next == count_children(*frame.value)) {
      frame.value->depth = 1 + frame.deepest;
      const int32_t depth = frame.value->depth;
      open.pop_back();
      if (!open.empty()) open.back().deepest = std::max(open.back().deepest, depth);
      continue;
    }
    // The arena owns the children as mutable values; containers only show them as constant.
    auto* next = const_cast<Value*>(child(*frame.value, frame.next++));
    require(next->depth != kInProgress, ErrorCode::kDataCorrupt, "pickle: a value contains itself");
    if (next->depth == 0) {
      enter(next);
    } else {
      require(static_cast<int32_t>(open.size()) + next->depth <= kMaxDepth, ErrorCode::kDataCorrupt,
              "pickle: values nested deeper than ", kMaxDepth, " levels");
      frame.deepest = std::max(frame.deepest, next->depth);
    }
  }
}

}  // namespace vgen::io::detail
