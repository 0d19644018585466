#include <algorithm>
#include <cstring>
#include <limits>
#include <map>
#include <tuple>
#include <unordered_set>

#include "vgen/io/detail/bytes.h"
#include "vgen/io/detail/zip_writer.h"
#include "vgen/io/torch_file.h"

namespace vgen::io {
namespace {

constexpr size_t kAlignment = 64;  // as torch.save; lets torch.load map the file

// Storage type of a dtype for _rebuild_tensor_v2; "" where PyTorch uses v3 and untyped bytes.
std::string_view storage_type(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat64:
      return "DoubleStorage";
    case Dtype::kFloat32:
      return "FloatStorage";
    case Dtype::kFloat16:
      return "HalfStorage";
    case Dtype::kBFloat16:
      return "BFloat16Storage";
    case Dtype::kInt64:
      return "LongStorage";
    case Dtype::kInt32:
      return "IntStorage";
    case Dtype::kInt16:
      return "ShortStorage";
    case Dtype::kInt8:
      return "CharStorage";
    case Dtype::kUInt8:
      return "ByteStorage";
    case Dtype::kBool:
      return "BoolStorage";
    case Dtype::kComplex64:
      return "ComplexFloatStorage";
    case Dtype::kComplex128:
      return "ComplexDoubleStorage";
    default:
      return "";
  }
}

// Emits opcodes of protocol 2, without a memo: nothing is shared but storages.
class Pickler {
 public:
  std::string run(const TorchDict& root) {
    out_.assign("\x80\x02", 2);
    write(root);
    out_.push_back('.');
    return std::move(out_);
  }
  const std::vector<std::span<const std::byte>>& storages() const { return storages_; }

 private:
  void write(const TorchDict& dict) {
    std::unordered_set<std::string_view> keys;
    out_ += "}(";
    for (const auto& [key, item] : dict.entries) {
      require(keys.insert(key).second, ErrorCode::kInvalidArgument, "two entries are named '",
              printable(key), "'");
      write(key);
      std::visit([this](const auto& value) { write(value); }, item.value);
    }
    out_.push_back('u');
  }
  void write(const std::vector<TorchItem>& list) {
    out_ += "](";
    for (const TorchItem& item : list) {
      std::visit([this](const auto& value) { write(value); }, item.value);
    }
    out_.push_back('e');
  }
  void write(std::monostate) { out_.push_back('N'); }
  void write(bool value) { out_.push_back(value ? '\x88' : '\x89'); }
  void write(int64_t value) {
    if (value >= std::numeric_limits<int32_t>::min() &&
        value <= std::numeric_limits<int32_t>::max()) {
      out_.push_back('J');
      detail::append_le<int32_t>(out_, static_cast<int32_t>(value));
    } else {
      out_ += "\x8a\x08";
      detail::append_le<int64_t>(out_, value);
    }
  }
  void write(double value) {  // big-endian, unlike all else
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(bits));
    out_.push_back('G');
    detail::append_le<uint64_t>(out_, __builtin_bswap64(bits));
  }
  void write(const std::string& text) {
    require(text.size() <= std::numeric_limits<uint32_t>::max() && detail::is_utf8(text),
            ErrorCode::kInvalidArgument, "the text '", printable(text, 40), "' is not UTF-8");
    out_.push_back('X');
    detail::append_le<uint32_t>(out_, static_cast<uint32_t>(text.size()));
    out_ += text;
  }
  void write_sizes(const std::vector<int64_t>& sizes) {
    out_.push_back('(');
    for (const int64_t size : sizes) write(size);
    out_.push_back('t');
  }
  void write(const ArrayView& array) {
    require(array.data.size() == count_bytes(array.dtype, array.shape), ErrorCode::kInternal,
            "a tensor has ", array.data.size(), " bytes for ", format_shape(array.shape));
    const std::string_view type = storage_type(array.dtype);
    out_ += str_cat("ctorch._utils\n_rebuild_tensor_v", type.empty() ? "3" : "2", "\n(");
    write_storage(array, type);
    write(int64_t{0});
    write_sizes(array.shape);
    std::vector<int64_t> stride(array.shape.size());
    int64_t step = 1;
    for (size_t i = stride.size(); i-- > 0;) {
      stride[i] = step;
      step *= std::max<int64_t>(array.shape[i], 1);
    }
    write_sizes(stride);
    write(false);                             // requires_grad
    out_ += "ccollections\nOrderedDict\n)R";  // no backward hooks
    if (type.empty()) out_ += str_cat("ctorch\n", dtype_name(array.dtype), "\n");
    out_ += "tR";
  }
  void write_storage(const ArrayView& array, std::string_view type) {
    const auto [place, is_new] =
        key_by_bytes_.try_emplace({array.data.data(), array.data.size(), array.dtype},
                                  static_cast<int64_t>(storages_.size()));
    // Empty arrays may share an address without sharing anything.
    const bool is_shared = !is_new && !array.data.empty();
    const int64_t key = is_shared ? place->second : static_cast<int64_t>(storages_.size());
    if (!is_shared) storages_.push_back(array.data);
    out_.push_back('(');
    write(std::string("storage"));
    out_ += type.empty() ? std::string("ctorch.storage\nUntypedStorage\n")
                         : str_cat("ctorch\n", type, "\n");
    write(std::to_string(key));
    write(std::string("cpu"));
    write(type.empty() ? static_cast<int64_t>(array.data.size()) : array.num_elements());
    out_ += "tQ";
  }

  std::string out_;
  std::vector<std::span<const std::byte>> storages_;
  std::map<std::tuple<const std::byte*, size_t, Dtype>, int64_t> key_by_bytes_;
};

}  // namespace

TorchDict::TorchDict() = default;
TorchDict::~TorchDict() = default;
TorchDict::TorchDict(const TorchDict&) = default;
TorchDict::TorchDict(TorchDict&&) noexcept = default;
TorchDict& TorchDict::operator=(const TorchDict&) = default;
TorchDict& TorchDict::operator=(TorchDict&&) noexcept = default;

TorchDict& TorchDict::add(std::string key, TorchItem item) {
  entries.emplace_back(std::move(key), std::move(item));
  return *this;
}

void write_torch_file(const std::string& path, const TorchDict& root) {
  Pickler pickler;
  std::string pickle;
  try {
    pickle = pickler.run(root);
  } catch (Error& error) {
    error.add_context(path);
    throw;
  }
  detail::ZipWriter zip(path, kAlignment);
  zip.add("archive/data.pkl", detail::as_bytes(pickle));
  zip.add("archive/byteorder", detail::as_bytes("little"));
  for (size_t key = 0; key < pickler.storages().size(); ++key) {
    zip.add(str_cat("archive/data/", key), pickler.storages()[key]);
  }
  zip.add("archive/version", detail::as_bytes("3\n"));
  zip.finish();
}

}  // namespace vgen::io
