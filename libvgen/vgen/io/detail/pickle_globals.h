#pragma once
// The classes and functions that a PyTorch pickle may name, and what stands for their calls.

#include <deque>
#include <string>
#include <string_view>
#include <unordered_map>

#include "vgen/io/torch_value.h"

namespace vgen::io::detail {

/// Owns the values of one file. Flat, so destruction never recurses.
struct PickleArena {
  std::deque<Value> values;
  std::deque<TorchStorage> storages;
  std::unordered_map<std::string, TorchStorage*> storage_by_key;

  Value* add(Value::Kind kind);
  template <class Data>
  Value* add(Value::Kind kind, Data data) {
    Value* value = add(kind);
    value->data = std::move(data);
    return value;
  }
};

/// A value for the global `module`.`name`: kSymbol, or kDtype for torch.float32 and its like.
/// Throws Error(kDataCorrupt) that names it when it is not on the list.
Value* find_global(PickleArena& arena, std::string_view module, std::string_view name);

/// The value of symbol(*arguments). Only the pairs on the list; never runs anything.
Value* call_global(PickleArena& arena, const Value& symbol, const Value& arguments);

/// The value of symbol.__new__(symbol, *arguments): argparse.Namespace only.
Value* new_object(PickleArena& arena, const Value& symbol, const Value& arguments);

/// object.__setstate__(state): entries of a Namespace, byte order of a NumPy dtype; the attributes
/// of an OrderedDict (state_dict's _metadata) are dropped.
void set_state(Value& object, const Value& state);

/// The storage of a persistent id: ("storage", type, key, location, count[, view]).
Value* load_storage(PickleArena& arena, const Value& persistent_id, bool is_legacy);

}  // namespace vgen::io::detail
