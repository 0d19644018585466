#include "vgen/io/torch_file.h"

#include <algorithm>
#include <cstring>
#include <unordered_map>

#include "vgen/core/log.h"
#include "vgen/io/detail/bytes.h"
#include "vgen/io/detail/torch_container.h"
#include "vgen/io/detail/unpickler.h"

namespace vgen::io {
namespace {

constexpr uint64_t kFreeCopy = uint64_t{64} << 20;  // bytes of a copy that need no justification

void swap_scalars(std::span<std::byte> bytes, size_t size) {
  for (size_t at = 0; at < bytes.size(); at += size) {
    std::reverse(bytes.data() + at, bytes.data() + at + size);
  }
}

bool is_contiguous(const TorchTensor& tensor) {
  int64_t expected = 1;
  for (size_t i = tensor.shape.size(); i-- > 0;) {
    if (tensor.shape[i] != 1 && tensor.stride[i] != expected) return false;
    expected *= tensor.shape[i];
  }
  return true;
}

// Gathers the elements of a strided view, the last index varying fastest.
void copy_strided(const TorchTensor& tensor, std::span<const std::byte> storage,
                  std::span<std::byte> out) {
  const size_t item = item_size(tensor.dtype);
  const size_t rank = tensor.shape.size();
  std::vector<int64_t> index(rank, 0);
  int64_t source = tensor.offset;
  for (size_t target = 0; target < out.size(); target += item) {
    std::memcpy(out.data() + target, storage.data() + static_cast<size_t>(source) * item, item);
    for (size_t i = rank; i-- > 0;) {
      source += tensor.stride[i];
      if (++index[i] < tensor.shape[i]) break;
      source -= tensor.stride[i] * index[i];
      index[i] = 0;
    }
  }
}

// Names of leaves, with a bound on how much shared values may blow them up.
class Flattener {
 public:
  Flattener(size_t max_visits, std::vector<TorchFile::Leaf>& leaves)
      : max_visits_(max_visits), leaves_(leaves) {}

  // Recursion is bounded by the nesting that the unpickler allows.
  void visit(const Value& value, const std::string& name, const std::string& group) {
    name_bytes_ += name.size() + group.size();
    num_visits_ += 1 + (value.has_items() ? value.items().size() : 0);
    require(num_visits_ <= max_visits_ && name_bytes_ <= kMaxNameBytes, ErrorCode::kDataCorrupt,
            "pickle: shared values expand to far more than the file holds");
    if (value.has_entries()) {
      for (const auto& [key, item] : value.entries()) {
        const bool is_text = key->kind == Value::Kind::kString;
        const std::string text = is_text ? key->text() : format_value(*key);
        const bool is_new_group = is_text && (item->has_entries() || item->has_items());
        visit(*item, join_name(name, text), is_new_group ? join_name(group, text) : group);
      }
    } else if (value.has_items() && std::ranges::any_of(value.items(), is_container)) {
      for (size_t i = 0; i < value.items().size(); ++i) {
        visit(*value.items()[i], join_name(name, std::to_string(i)), group);
      }
    } else {
      leaves_.push_back({name, group, &value});
    }
  }

 private:
  static constexpr size_t kMaxNameBytes = size_t{256} << 20;

  static bool is_container(const Value* value) {
    return value->has_entries() || value->has_items() || value->kind == Value::Kind::kTensor;
  }
  static std::string join_name(const std::string& name, const std::string& key) {
    return name.empty() ? key : str_cat(name, ".", key);
  }

  size_t max_visits_;
  std::vector<TorchFile::Leaf>& leaves_;
  size_t num_visits_ = 0;
  size_t name_bytes_ = 0;
};

}  // namespace

struct TorchFile::Impl {
  FileBytes file;
  detail::PickleArena arena;
  std::unique_ptr<detail::TorchContainer> container;
  const Value* root = nullptr;
};

TorchFile::TorchFile(const std::string& path) : TorchFile(map_file(path)) {}

TorchFile::TorchFile(const FileBytes& file) : impl_(std::make_unique<Impl>()) {
  impl_->file = file;
  try {
    impl_->container = detail::open_torch_container(file.bytes, impl_->arena, impl_->root);
    if (!impl_->container->has_checksums()) {
      log_warning(file.name, ": written without checksums: damaged data cannot be told");
    }
  } catch (Error& error) {
    error.add_context(file.name);
    throw;
  }
}

TorchFile::~TorchFile() = default;
TorchFile::TorchFile(TorchFile&&) noexcept = default;
TorchFile& TorchFile::operator=(TorchFile&&) noexcept = default;

const Value& TorchFile::root() const { return *impl_->root; }

Array TorchFile::read(const TorchTensor& tensor) const {
  try {
    const size_t item = item_size(tensor.dtype);
    const uint64_t size = count_bytes(tensor.dtype, tensor.shape);
    const auto storage = impl_->container->read_storage(*tensor.storage);
    const bool must_swap = impl_->container->is_big_endian() && item > 1;
    if (size == 0 || (is_contiguous(tensor) && !must_swap)) {
      const auto bytes = size == 0
                             ? std::span<const std::byte>()
                             : storage.subspan(static_cast<size_t>(tensor.offset) * item, size);
      return normalised({ArrayView{tensor.dtype, tensor.shape, bytes}, impl_->file.owner});
    }
    require(size <= std::max<uint64_t>(kFreeCopy, impl_->file.bytes.size()),
            ErrorCode::kDataCorrupt, "storage ", tensor.storage->key, ": an expanded view of ",
            format_shape(tensor.shape), " would take ", format_bytes(size),
            ", more than the file itself; save it contiguous or not expanded");
    return normalised(make_array(tensor.dtype, tensor.shape, [&](std::span<std::byte> out) {
      copy_strided(tensor, storage, out);
      if (must_swap) swap_scalars(out, scalar_size(tensor.dtype));
    }));
  } catch (Error& error) {
    error.add_context(impl_->file.name);
    throw;
  }
}

std::vector<TorchFile::Leaf> TorchFile::flatten(const Value& value) const {
  std::vector<Leaf> leaves;
  try {
    Flattener(1000 + 10 * impl_->arena.values.size(), leaves).visit(value, "", "");
  } catch (Error& error) {
    error.add_context(impl_->file.name);
    throw;
  }
  return leaves;
}

}  // namespace vgen::io
