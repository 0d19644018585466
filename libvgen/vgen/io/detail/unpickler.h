#pragma once
// A pickle machine that can only build plain data.

#include <cstddef>
#include <span>
#include <unordered_map>
#include <vector>

#include "vgen/io/detail/pickle_globals.h"

namespace vgen::io::detail {

/// Runs one pickle of protocol 2: the opcodes that torch.save emits, nothing else. Values go to the
/// arena. Throws Error(kDataCorrupt) with the byte; the caller adds file and record.
class Unpickler {
 public:
  /// `is_legacy`: persistent ids have the form of the legacy stream.
  Unpickler(std::span<const std::byte> pickle, PickleArena& arena, bool is_legacy);

  /// The value at STOP, checked: no cycles, nesting of at most 1000, no duplicate keys.
  const Value* run();

  /// Bytes up to and including STOP.
  size_t size_bytes() const { return position_; }

 private:
  bool step();  // false at STOP
  bool push_scalar(uint8_t opcode);
  bool build_container(uint8_t opcode);
  bool use_memo(uint8_t opcode);
  bool make_object(uint8_t opcode);

  std::span<const std::byte> take(size_t count);
  template <class T>
  T take_le();
  std::string_view take_line();
  double take_float();
  int64_t take_long();
  Value* make_text(std::string_view text, bool is_python2);

  void push(Value* value);
  Value* pop();
  Value* top();
  size_t floor() const { return marks_.empty() ? 0 : marks_.back(); }
  std::vector<const Value*> pop_to_mark();
  void append(const std::vector<const Value*>& items);
  void set_items(const std::vector<const Value*>& keys_and_values);
  Value* make_tuple(size_t count);

  std::span<const std::byte> pickle_;
  size_t position_ = 0;
  PickleArena& arena_;
  bool is_legacy_;
  size_t max_values_;
  std::vector<Value*> stack_;
  std::vector<size_t> marks_;
  std::unordered_map<uint32_t, Value*> memo_;
};

/// Sets Value::depth below `root`. Throws Error(kDataCorrupt) on cycles, on nesting above 1000 and
/// on dicts with a repeated key. Does not recurse.
void check_tree(Value& root);

}  // namespace vgen::io::detail
