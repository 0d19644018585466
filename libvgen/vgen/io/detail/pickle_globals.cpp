#include "vgen/io/detail/pickle_globals.h"

#include <algorithm>
#include <cstring>
#include <optional>

#include "vgen/core/error.h"
#include "vgen/io/detail/numpy_scalar.h"

namespace vgen::io::detail {
namespace {

using Kind = Value::Kind;

constexpr size_t kMaxRank = 64;
constexpr std::string_view kNumpyDtype = "numpy.dtype";

struct StorageRow {
  std::string_view name;
  std::optional<Dtype> dtype;
};
constexpr StorageRow kStorageTypes[] = {
    {"torch.DoubleStorage", Dtype::kFloat64},
    {"torch.FloatStorage", Dtype::kFloat32},
    {"torch.HalfStorage", Dtype::kFloat16},
    {"torch.BFloat16Storage", Dtype::kBFloat16},
    {"torch.LongStorage", Dtype::kInt64},
    {"torch.IntStorage", Dtype::kInt32},
    {"torch.ShortStorage", Dtype::kInt16},
    {"torch.CharStorage", Dtype::kInt8},
    {"torch.ByteStorage", Dtype::kUInt8},
    {"torch.BoolStorage", Dtype::kBool},
    {"torch.ComplexFloatStorage", Dtype::kComplex64},
    {"torch.ComplexDoubleStorage", Dtype::kComplex128},
    {"torch.storage.UntypedStorage", std::nullopt},
};

// Dtypes are values, wherever they stand; those of quantised tensors and the like only have a name.
constexpr std::string_view kTorchDtypes[] = {
    "bool",           "uint8",       "int8",      "uint16",     "int16",    "uint32",
    "int32",          "uint64",      "int64",     "float16",    "bfloat16", "float32",
    "float64",        "complex32",   "complex64", "complex128", "float",    "double",
    "half",           "short",       "int",       "long",       "cfloat",   "cdouble",
    "float8_e4m3fn",  "float8_e5m2", "qint8",     "quint8",     "qint32",   "float8_e4m3fnuz",
    "float8_e5m2fnuz"};

using Call = Value* (*)(PickleArena&, const Value& arguments);

// The arguments of a call, told by their place in error messages.
class Arguments {
 public:
  Arguments(std::string_view function, const Value& tuple) : function_(function) {
    require(tuple.kind == Kind::kTuple, ErrorCode::kDataCorrupt, function, ": called with ",
            value_kind_name(tuple.kind), ", expected a tuple");
    items_ = &tuple.items();
  }

  size_t size() const { return items_->size(); }
  void check_count(size_t least, size_t most) const {
    require(size() >= least && size() <= most, ErrorCode::kDataCorrupt, function_, ": ", size(),
            " arguments, expected ", least, least == most ? "" : str_cat(" to ", most));
  }
  const Value& at(size_t i) const { return *items_->at(i); }
  const Value& at(size_t i, Kind kind) const {
    require(at(i).kind == kind, ErrorCode::kDataCorrupt, function_, ": argument ", i, " is ",
            value_kind_name(at(i).kind), ", expected ", value_kind_name(kind));
    return at(i);
  }
  int64_t natural(size_t i) const {
    const int64_t value = at(i, Kind::kInt).integer();
    require(value >= 0, ErrorCode::kDataCorrupt, function_, ": argument ", i, " is ", value,
            ", expected at least 0");
    return value;
  }
  std::vector<int64_t> naturals(size_t i) const {
    const Value& sequence = at(i);
    require(sequence.kind == Kind::kTuple || sequence.kind == Kind::kSize, ErrorCode::kDataCorrupt,
            function_, ": argument ", i, " is ", value_kind_name(sequence.kind),
            ", expected a tuple of sizes");
    std::vector<int64_t> numbers;
    for (const Value* item : sequence.items()) {
      require(item->kind == Kind::kInt && item->integer() >= 0, ErrorCode::kDataCorrupt, function_,
              ": argument ", i, " holds ", format_value(*item),
              ", expected integers of at least 0");
      numbers.push_back(item->integer());
    }
    return numbers;
  }
  // Backward hooks and metadata: nothing, or an empty dict.
  void check_empty(size_t i, std::string_view what) const {
    const bool is_empty =
        at(i).kind == Kind::kNone || (at(i).kind == Kind::kDict && at(i).entries().empty());
    require(is_empty, ErrorCode::kDataCorrupt, function_, ": the tensor has ", what,
            ", which is not supported");
  }

 private:
  std::string_view function_;
  const std::vector<const Value*>* items_;
};

// Every element that the view reaches must lie inside the storage.
void check_geometry(const TorchTensor& tensor, int64_t num_stored, std::string_view function) {
  require(tensor.shape.size() == tensor.stride.size(), ErrorCode::kDataCorrupt, function, ": ",
          tensor.shape.size(), " sizes but ", tensor.stride.size(), " strides");
  require(tensor.shape.size() <= kMaxRank, ErrorCode::kDataCorrupt, function, ": ",
          tensor.shape.size(), " dimensions, at most ", kMaxRank, " are supported");
  if (count_bytes(tensor.dtype, tensor.shape) == 0) return;
  int64_t last = tensor.offset;
  for (size_t i = 0; i < tensor.shape.size(); ++i) {
    int64_t reach = 0;
    const bool overflows = __builtin_mul_overflow(tensor.shape[i] - 1, tensor.stride[i], &reach) ||
                           __builtin_add_overflow(last, reach, &last);
    require(!overflows, ErrorCode::kDataCorrupt, function, ": shape ", format_shape(tensor.shape),
            " with strides ", format_shape(tensor.stride), " reaches beyond 2^63 elements");
  }
  require(last < num_stored, ErrorCode::kDataCorrupt, function, ": shape ",
          format_shape(tensor.shape), ", strides ", format_shape(tensor.stride), ", offset ",
          tensor.offset, " reach element ", last, " of a storage of ", num_stored);
}

Value* make_tensor(PickleArena& arena, const Arguments& arguments, std::string_view function,
                   std::optional<Dtype> dtype) {
  const TorchStorage* storage = std::get<const TorchStorage*>(arguments.at(0, Kind::kStorage).data);
  auto tensor = std::make_unique<TorchTensor>();
  tensor->storage = storage;
  tensor->offset = arguments.natural(1);
  tensor->shape = arguments.naturals(2);
  tensor->stride = arguments.naturals(3);
  tensor->requires_grad = arguments.at(4, Kind::kBool).boolean();
  arguments.check_empty(5, "backward hooks");
  int64_t num_stored = storage->num_elements;
  if (dtype.has_value() && !storage->dtype.has_value()) {
    num_stored /= static_cast<int64_t>(item_size(*dtype));
  }
  const std::optional<Dtype> element = storage->dtype.has_value() ? storage->dtype : dtype;
  require(element.has_value(), ErrorCode::kDataCorrupt, function,
          ": an untyped storage without a dtype");
  require(!dtype.has_value() || *dtype == *element, ErrorCode::kDataCorrupt, function,
          ": a tensor of ", dtype_name(*element), " storage with dtype ",
          dtype_name(dtype.value_or(*element)));
  tensor->dtype = *element;
  check_geometry(*tensor, num_stored, function);
  return arena.add(Kind::kTensor, std::move(tensor));
}

Value* rebuild_tensor_v2(PickleArena& arena, const Value& tuple) {
  const Arguments arguments("_rebuild_tensor_v2", tuple);
  arguments.check_count(6, 7);
  if (arguments.size() == 7) arguments.check_empty(6, "metadata (conjugated or negated)");
  return make_tensor(arena, arguments, "_rebuild_tensor_v2", std::nullopt);
}

Value* rebuild_tensor_v3(PickleArena& arena, const Value& tuple) {
  const Arguments arguments("_rebuild_tensor_v3", tuple);
  arguments.check_count(7, 8);
  if (arguments.size() == 8) arguments.check_empty(7, "metadata (conjugated or negated)");
  const std::string& name = arguments.at(6, Kind::kDtype).text();
  const auto dtype = parse_dtype(std::string_view(name).substr(name.find('.') + 1));
  require(dtype.has_value(), ErrorCode::kDataCorrupt, "_rebuild_tensor_v3: dtype ", printable(name),
          " is not supported");
  return make_tensor(arena, arguments, "_rebuild_tensor_v3", dtype);
}

Value* make_parameter(PickleArena& arena, const Arguments& arguments) {
  auto tensor = std::make_unique<TorchTensor>(arguments.at(0, Kind::kTensor).tensor());
  tensor->requires_grad = arguments.at(1, Kind::kBool).boolean();
  tensor->is_parameter = true;
  arguments.check_empty(2, "backward hooks");
  return arena.add(Kind::kTensor, std::move(tensor));
}

Value* rebuild_parameter(PickleArena& arena, const Value& tuple) {
  const Arguments arguments("_rebuild_parameter", tuple);
  arguments.check_count(3, 3);
  return make_parameter(arena, arguments);
}

// The state, Python attributes of the parameter, is dropped.
Value* rebuild_parameter_with_state(PickleArena& arena, const Value& tuple) {
  const Arguments arguments("_rebuild_parameter_with_state", tuple);
  arguments.check_count(4, 4);
  return make_parameter(arena, arguments);
}

// OrderedDict() or, from Python 2, OrderedDict([[key, value], ...]).
Value* make_ordered_dict(PickleArena& arena, const Value& tuple) {
  const Arguments arguments("OrderedDict", tuple);
  arguments.check_count(0, 1);
  Value::Entries entries;
  if (arguments.size() == 1) {
    for (const Value* pair : arguments.at(0, Kind::kList).items()) {
      require(
          (pair->kind == Kind::kList || pair->kind == Kind::kTuple) && pair->items().size() == 2,
          ErrorCode::kDataCorrupt, "OrderedDict: ", format_value(*pair),
          " in its list, expected [key, value]");
      entries.emplace_back(pair->items()[0], pair->items()[1]);
    }
  }
  Value* dict = arena.add(Kind::kDict, std::move(entries));
  dict->is_ordered = true;
  return dict;
}

Value* make_size(PickleArena& arena, const Value& tuple) {
  const Arguments arguments("torch.Size", tuple);
  arguments.check_count(1, 1);
  arguments.naturals(0);
  return arena.add(Kind::kSize, arguments.at(0).items());
}

Value* make_device(PickleArena& arena, const Value& tuple) {
  const Arguments arguments("torch.device", tuple);
  arguments.check_count(1, 2);
  std::string text = arguments.at(0, Kind::kString).text();
  if (arguments.size() == 2) text += str_cat(":", arguments.natural(1));
  return arena.add(Kind::kDevice, std::move(text));
}

Value* make_set(PickleArena& arena, const Value& tuple) {
  const Arguments arguments("set", tuple);
  arguments.check_count(1, 1);
  return arena.add(Kind::kSet, arguments.at(0, Kind::kList).items());
}

// _codecs.encode(text, "latin1"): how Python 3 spells bytes in protocol 2.
Value* encode_latin1(PickleArena& arena, const Value& tuple) {
  const Arguments arguments("_codecs.encode", tuple);
  arguments.check_count(2, 2);
  require(arguments.at(1, Kind::kString).text() == "latin1", ErrorCode::kDataCorrupt,
          "_codecs.encode: encoding '", printable(arguments.at(1).text()), "', expected latin1");
  const std::string& text = arguments.at(0, Kind::kString).text();
  std::string bytes;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto first = static_cast<unsigned char>(text[i]);
    if (first >= 0x80) {  // U+0080 to U+00FF are C2 80 to C3 BF
      require(first <= 0xc3 && i + 1 < text.size(), ErrorCode::kDataCorrupt,
              "_codecs.encode: a character beyond latin1");
      bytes.push_back(static_cast<char>((first & 3) << 6 | (text[++i] & 0x3f)));
    } else {
      bytes.push_back(text[i]);
    }
  }
  return arena.add(Kind::kBytes, std::move(bytes));
}

Value* make_numpy_dtype(PickleArena& arena, const Value& tuple) {
  const Arguments arguments(kNumpyDtype, tuple);
  arguments.check_count(1, 3);
  return arena.add(Kind::kDtype, arguments.at(0, Kind::kString).text());
}

Value* make_numpy_scalar(PickleArena& arena, const Value& tuple) {
  const Arguments arguments("numpy scalar", tuple);
  arguments.check_count(2, 2);
  const Kind kind = arguments.at(1).kind;
  require(kind == Kind::kBytes || kind == Kind::kString, ErrorCode::kDataCorrupt,
          "numpy scalar: argument 1 is ", value_kind_name(kind), ", expected bytes");
  Value* value = arena.add(Kind::kNone);
  decode_numpy_scalar(arguments.at(0, Kind::kDtype).text(), arguments.at(1).text(), *value);
  return value;
}

struct FunctionRow {
  std::string_view name;
  Call call;
};
constexpr FunctionRow kFunctions[] = {
    {"collections.OrderedDict", make_ordered_dict},
    {"torch._utils._rebuild_tensor_v2", rebuild_tensor_v2},
    {"torch._utils._rebuild_tensor_v3", rebuild_tensor_v3},
    {"torch._utils._rebuild_parameter", rebuild_parameter},
    {"torch._utils._rebuild_parameter_with_state", rebuild_parameter_with_state},
    {"torch.Size", make_size},
    {"torch.device", make_device},
    {"__builtin__.set", make_set},
    {"_codecs.encode", encode_latin1},
    {kNumpyDtype, make_numpy_dtype},
    {"numpy.core.multiarray.scalar", make_numpy_scalar},
    {"numpy._core.multiarray.scalar", make_numpy_scalar},
};
constexpr std::string_view kNamespace = "argparse.Namespace";

const StorageRow* find_storage_type(std::string_view name) {
  const auto* row = std::ranges::find(kStorageTypes, name, &StorageRow::name);
  return row == std::end(kStorageTypes) ? nullptr : row;
}

bool is_all_digits(std::string_view text) {
  return !text.empty() && text.size() <= 20 &&
         std::ranges::all_of(text, [](char c) { return c >= '0' && c <= '9'; });
}

}  // namespace

Value* PickleArena::add(Kind kind) {
  Value& value = values.emplace_back();
  value.kind = kind;
  return &value;
}

Value* find_global(PickleArena& arena, std::string_view module, std::string_view name) {
  std::string full = str_cat(module, ".", name);
  if (module == "torch" && std::ranges::find(kTorchDtypes, name) != std::end(kTorchDtypes)) {
    return arena.add(Kind::kDtype, std::move(full));
  }
  const bool is_known =
      full == kNamespace || find_storage_type(full) != nullptr ||
      std::ranges::find(kFunctions, full, &FunctionRow::name) != std::end(kFunctions);
  require(is_known, ErrorCode::kDataCorrupt, "pickle: refused: the file asks for ",
          printable(full, 120),
          ", which is not on the list of harmless names; save a state dict of plain tensors");
  return arena.add(Kind::kSymbol, std::move(full));
}

Value* call_global(PickleArena& arena, const Value& symbol, const Value& arguments) {
  require(symbol.kind == Kind::kSymbol, ErrorCode::kDataCorrupt, "pickle: a call of ",
          value_kind_name(symbol.kind), ", expected a function");
  const auto* row = std::ranges::find(kFunctions, symbol.text(), &FunctionRow::name);
  require(row != std::end(kFunctions), ErrorCode::kDataCorrupt, "pickle: refused: a call of ",
          symbol.text());
  return row->call(arena, arguments);
}

Value* new_object(PickleArena& arena, const Value& symbol, const Value& arguments) {
  require(symbol.kind == Kind::kSymbol && symbol.text() == kNamespace, ErrorCode::kDataCorrupt,
          "pickle: refused: a new object of ", format_value(symbol), ", expected ", kNamespace);
  Arguments(kNamespace, arguments).check_count(0, 0);
  return arena.add(Kind::kNamespace, Value::Entries());
}

void set_state(Value& object, const Value& state) {
  if (object.kind == Kind::kDtype && state.kind == Kind::kTuple) {
    const auto& items = state.items();  // (version, byte order, ...)
    require(items.size() >= 2 && items[1]->kind == Kind::kString && items[1]->text().size() == 1 &&
                !object.text().empty() &&
                std::string_view("<>|=").find(object.text()[0]) == std::string_view::npos,
            ErrorCode::kDataCorrupt, "pickle: a NumPy dtype with a state of another form");
    object.data = items[1]->text() + object.text();
    return;
  }
  const bool has_text_keys =
      state.kind == Kind::kDict && std::ranges::all_of(state.entries(), [](const auto& entry) {
        return entry.first->kind == Kind::kString;
      });
  const bool is_ordered_dict = object.kind == Kind::kDict && object.is_ordered;
  require(has_text_keys && (is_ordered_dict || object.kind == Kind::kNamespace),
          ErrorCode::kDataCorrupt, "pickle: refused: a state of ", value_kind_name(state.kind),
          " for ", value_kind_name(object.kind));
  if (object.kind == Kind::kNamespace) object.data = state.entries();
}

Value* load_storage(PickleArena& arena, const Value& persistent_id, bool is_legacy) {
  const Arguments id("persistent id", persistent_id);
  if (is_legacy) {
    id.check_count(6, 6);
    require(id.at(5).kind == Kind::kNone, ErrorCode::kDataCorrupt,
            "persistent id: a storage that is a view of another is not supported");
  } else {
    id.check_count(5, 5);
  }
  require(id.at(0, Kind::kString).text() == "storage", ErrorCode::kDataCorrupt, "persistent id: '",
          printable(id.at(0).text()), "', expected 'storage'");
  const StorageRow* type = find_storage_type(id.at(1, Kind::kSymbol).text());
  require(type != nullptr, ErrorCode::kDataCorrupt, "persistent id: ", id.at(1).text(),
          " is not a storage type");
  const std::string& key = id.at(2, Kind::kString).text();
  require(is_all_digits(key), ErrorCode::kDataCorrupt, "persistent id: storage key '",
          printable(key), "', expected digits");
  id.at(3, Kind::kString);  // the device it was on
  const int64_t count = id.natural(4);
  TorchStorage*& storage = arena.storage_by_key[key];
  if (storage == nullptr) {
    storage = &arena.storages.emplace_back(TorchStorage{key, type->dtype, count});
  }
  require(storage->dtype == type->dtype && storage->num_elements == count, ErrorCode::kDataCorrupt,
          "persistent id: storage ", key, " is used with two types or sizes");
  return arena.add(Kind::kStorage, static_cast<const TorchStorage*>(storage));
}

}  // namespace vgen::io::detail
