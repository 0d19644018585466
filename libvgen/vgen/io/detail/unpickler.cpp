#include "vgen/io/detail/unpickler.h"

#include <bit>
#include <cstring>

#include "vgen/core/error.h"
#include "vgen/io/detail/bytes.h"

namespace vgen::io::detail {
namespace {

using Kind = Value::Kind;

constexpr size_t kMinValueBudget = 2'000'000;

// What Python can hash, as far as such files need it.
bool can_be_key(Kind kind) {
  switch (kind) {
    case Kind::kNone:
    case Kind::kBool:
    case Kind::kInt:
    case Kind::kFloat:
    case Kind::kString:
    case Kind::kBytes:
    case Kind::kTuple:
    case Kind::kDtype:
    case Kind::kDevice:
      return true;
    default:
      return false;
  }
}

}  // namespace

Unpickler::Unpickler(std::span<const std::byte> pickle, PickleArena& arena, bool is_legacy)
    : pickle_(pickle),
      arena_(arena),
      is_legacy_(is_legacy),
      max_values_(arena.values.size() + kMinValueBudget + pickle.size() / 16) {}

const Value* Unpickler::run() {
  size_t start = 0;
  try {
    do {
      start = position_;
    } while (step());
    require(stack_.size() == 1 && marks_.empty(), ErrorCode::kDataCorrupt, "pickle: ends with ",
            stack_.size(), " values on its stack, expected one");
    check_tree(*stack_[0]);
    return stack_[0];
  } catch (Error& error) {
    error.add_context(str_cat("byte ", start));
    throw;
  }
}

bool Unpickler::step() {
  const auto opcode = take_le<uint8_t>();
  if (opcode == '.') return false;
  if (opcode == 0x80) {  // PROTO
    const auto protocol = take_le<uint8_t>();
    require(protocol == 2, ErrorCode::kDataCorrupt, "pickle: protocol ", protocol,
            ", expected 2 (the default of torch.save)");
    return true;
  }
  const bool is_known =
      push_scalar(opcode) || build_container(opcode) || use_memo(opcode) || make_object(opcode);
  require(is_known, ErrorCode::kDataCorrupt, "pickle: refused: opcode ", opcode,
          opcode >= 0x20 && opcode < 0x7f ? str_cat(" ('", static_cast<char>(opcode), "')") : "",
          " is not one that torch.save writes");
  return true;
}

bool Unpickler::push_scalar(uint8_t opcode) {
  switch (opcode) {
    case 'N':  // NONE
      push(arena_.add(Kind::kNone));
      return true;
    case 0x88:  // NEWTRUE
    case 0x89:  // NEWFALSE
      push(arena_.add(Kind::kBool, opcode == 0x88));
      return true;
    case 'J':  // BININT
      push(arena_.add(Kind::kInt, int64_t{take_le<int32_t>()}));
      return true;
    case 'K':  // BININT1
      push(arena_.add(Kind::kInt, int64_t{take_le<uint8_t>()}));
      return true;
    case 'M':  // BININT2
      push(arena_.add(Kind::kInt, int64_t{take_le<uint16_t>()}));
      return true;
    case 0x8a:  // LONG1
      push(arena_.add(Kind::kInt, take_long()));
      return true;
    case 'G':  // BINFLOAT
      push(arena_.add(Kind::kFloat, take_float()));
      return true;
    case 'X':  // BINUNICODE
      push(make_text(as_text(take(take_le<uint32_t>())), false));
      return true;
    case 'U':  // SHORT_BINSTRING
      push(make_text(as_text(take(take_le<uint8_t>())), true));
      return true;
    default:
      return false;
  }
}

bool Unpickler::build_container(uint8_t opcode) {
  switch (opcode) {
    case '(':  // MARK
      marks_.push_back(stack_.size());
      return true;
    case '}':  // EMPTY_DICT
      push(arena_.add(Kind::kDict, Value::Entries()));
      return true;
    case ']':  // EMPTY_LIST
      push(arena_.add(Kind::kList, std::vector<const Value*>()));
      return true;
    case ')':  // EMPTY_TUPLE
      push(make_tuple(0));
      return true;
    case 0x85:  // TUPLE1, TUPLE2, TUPLE3
    case 0x86:
    case 0x87:
      push(make_tuple(opcode - 0x84u));
      return true;
    case 't': {  // TUPLE
      auto items = pop_to_mark();
      push(arena_.add(Kind::kTuple, std::move(items)));
      return true;
    }
    case 'a':  // APPEND
      append({pop()});
      return true;
    case 'e':  // APPENDS
      append(pop_to_mark());
      return true;
    case 's': {  // SETITEM
      const Value* value = pop();
      const Value* key = pop();
      set_items({key, value});
      return true;
    }
    case 'u':  // SETITEMS
      set_items(pop_to_mark());
      return true;
    default:
      return false;
  }
}

bool Unpickler::use_memo(uint8_t opcode) {
  switch (opcode) {
    case 'q':  // BINPUT
      memo_[take_le<uint8_t>()] = top();
      return true;
    case 'r':  // LONG_BINPUT
      memo_[take_le<uint32_t>()] = top();
      return true;
    case 'h':    // BINGET
    case 'j': {  // LONG_BINGET
      const uint32_t slot = opcode == 'h' ? take_le<uint8_t>() : take_le<uint32_t>();
      const auto found = memo_.find(slot);
      require(found != memo_.end(), ErrorCode::kDataCorrupt, "pickle: memo slot ", slot,
              " is read before it is set");
      push(found->second);
      return true;
    }
    default:
      return false;
  }
}

bool Unpickler::make_object(uint8_t opcode) {
  switch (opcode) {
    case 'c': {  // GLOBAL
      const std::string_view module = take_line();
      const std::string_view name = take_line();
      push(find_global(arena_, module, name));
      return true;
    }
    case 'Q':  // BINPERSID
      push(load_storage(arena_, *pop(), is_legacy_));
      return true;
    case 'R': {  // REDUCE
      const Value* arguments = pop();
      const Value* function = pop();
      push(call_global(arena_, *function, *arguments));
      return true;
    }
    case 0x81: {  // NEWOBJ
      const Value* arguments = pop();
      const Value* type = pop();
      push(new_object(arena_, *type, *arguments));
      return true;
    }
    case 'b': {  // BUILD
      const Value* state = pop();
      set_state(*top(), *state);
      return true;
    }
    default:
      return false;
  }
}

std::span<const std::byte> Unpickler::take(size_t count) {
  require(count <= pickle_.size() - position_, ErrorCode::kDataCorrupt, "pickle: needs ", count,
          " bytes, only ", pickle_.size() - position_, " are left: the pickle is cut off");
  position_ += count;
  return pickle_.subspan(position_ - count, count);
}

template <class T>
T Unpickler::take_le() {
  return load_le<T>(take(sizeof(T)), 0);
}

std::string_view Unpickler::take_line() {
  const std::string_view rest = as_text(pickle_.subspan(position_));
  const size_t end = rest.find('\n');
  require(end != std::string_view::npos, ErrorCode::kDataCorrupt,
          "pickle: a name does not end: the pickle is cut off");
  position_ += end + 1;
  return rest.substr(0, end);
}

// Big-endian, unlike all else.
double Unpickler::take_float() {
  return std::bit_cast<double>(__builtin_bswap64(take_le<uint64_t>()));
}

// Two's complement of any length; here at most 64 bits.
int64_t Unpickler::take_long() {
  const size_t size = take_le<uint8_t>();
  const auto bytes = take(size);
  require(size <= 8, ErrorCode::kDataCorrupt, "pickle: an integer of ", size,
          " bytes, at most 8 are supported");
  if (size == 0) return 0;
  const bool is_negative = (bytes.back() & std::byte{0x80}) != std::byte{0};
  uint64_t number = is_negative ? ~uint64_t{0} : 0;
  std::memcpy(&number, bytes.data(), size);
  return static_cast<int64_t>(number);
}

// Python 2 has one type for text and bytes.
Value* Unpickler::make_text(std::string_view text, bool is_python2) {
  const bool is_text = is_utf8(text);
  require(is_text || is_python2, ErrorCode::kDataCorrupt, "pickle: text '", printable(text, 40),
          "' is not UTF-8");
  return arena_.add(is_text ? Kind::kString : Kind::kBytes, std::string(text));
}

void Unpickler::push(Value* value) {
  require(arena_.values.size() <= max_values_, ErrorCode::kDataCorrupt, "pickle: more than ",
          max_values_, " values");
  stack_.push_back(value);
}

Value* Unpickler::pop() {
  Value* value = top();
  stack_.pop_back();
  return value;
}

Value* Unpickler::top() {
  require(stack_.size() > floor(), ErrorCode::kDataCorrupt,
          "pickle: takes a value from an empty stack");
  return stack_.back();
}

std::vector<const Value*> Unpickler::pop_to_mark() {
  require(!marks_.empty(), ErrorCode::kDataCorrupt, "pickle: no mark on its stack");
  const auto begin = stack_.begin() + static_cast<std::ptrdiff_t>(marks_.back());
  std::vector<const Value*> values(begin, stack_.end());
  stack_.erase(begin, stack_.end());
  marks_.pop_back();
  return values;
}

void Unpickler::append(const std::vector<const Value*>& items) {
  Value* list = top();
  require(list->kind == Kind::kList, ErrorCode::kDataCorrupt, "pickle: appends to ",
          value_kind_name(list->kind), ", expected a list");
  auto& target = std::get<std::vector<const Value*>>(list->data);
  target.insert(target.end(), items.begin(), items.end());
}

void Unpickler::set_items(const std::vector<const Value*>& keys_and_values) {
  Value* dict = top();
  require(dict->kind == Kind::kDict, ErrorCode::kDataCorrupt, "pickle: sets items of ",
          value_kind_name(dict->kind), ", expected a dict");
  require(keys_and_values.size() % 2 == 0, ErrorCode::kDataCorrupt,
          "pickle: a dict key without a value");
  auto& entries = std::get<Value::Entries>(dict->data);
  for (size_t i = 0; i < keys_and_values.size(); i += 2) {
    require(can_be_key(keys_and_values[i]->kind), ErrorCode::kDataCorrupt,
            "pickle: ", value_kind_name(keys_and_values[i]->kind), " cannot be a dict key");
    entries.emplace_back(keys_and_values[i], keys_and_values[i + 1]);
  }
}

Value* Unpickler::make_tuple(size_t count) {
  std::vector<const Value*> items(count);
  for (size_t i = count; i-- > 0;) items[i] = pop();
  return arena_.add(Kind::kTuple, std::move(items));
}

}  // namespace vgen::io::detail
