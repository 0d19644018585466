#include "vgen/io/detail/torch_container.h"

#include <unordered_map>
#include <unordered_set>

#include "vgen/core/error.h"
#include "vgen/io/detail/bytes.h"
#include "vgen/io/detail/sniff.h"
#include "vgen/io/detail/unpickler.h"
#include "vgen/io/detail/zip_reader.h"

namespace vgen::io::detail {
namespace {

size_t storage_item_size(const TorchStorage& storage) {
  return storage.dtype.has_value() ? item_size(*storage.dtype) : 1;
}

// num_elements comes from the file: compares without multiplying.
void check_size(const TorchStorage& storage, uint64_t size_bytes) {
  const size_t item = storage_item_size(storage);
  require(
      size_bytes % item == 0 && size_bytes / item == static_cast<uint64_t>(storage.num_elements),
      ErrorCode::kDataCorrupt, "storage ", storage.key, ": ", storage.num_elements, " elements of ",
      item, " bytes are declared, but the file has ", size_bytes, " bytes");
}

template <class Body>
auto with_context(const std::string& context, Body&& body) {
  try {
    return body();
  } catch (Error& error) {
    error.add_context(context);
    throw;
  }
}

class ZipContainer : public TorchContainer {
 public:
  ZipContainer(std::span<const std::byte> file, PickleArena& arena, const Value*& root)
      : zip_(file) {
    const ZipEntry& pickle = find_pickle();
    read_byte_order();
    root = with_context(pickle.name, [&] {
      const auto bytes = zip_.read_stored(pickle);
      Unpickler unpickler(bytes, arena, /*is_legacy=*/false);
      const Value* value = unpickler.run();
      require(unpickler.size_bytes() == bytes.size(), ErrorCode::kDataCorrupt,
              "pickle: ", bytes.size() - unpickler.size_bytes(), " bytes follow its end");
      return value;
    });
    for (const TorchStorage& storage : arena.storages) check_size(storage, entry(storage).size);
  }

  std::span<const std::byte> read_storage(const TorchStorage& storage) override {
    const ZipEntry& record = entry(storage);
    if (verified_.insert(storage.key).second) zip_.read_stored(record);
    return record.data;
  }
  bool is_big_endian() const override { return is_big_endian_; }
  bool has_checksums() const override { return zip_.has_checksums(); }

 private:
  // Exactly one record "<folder>/data.pkl"; its folder holds the others.
  const ZipEntry& find_pickle() {
    const ZipEntry* found = nullptr;
    for (const ZipEntry& entry : zip_.entries()) {
      const size_t slash = entry.name.find('/');
      if (slash == std::string::npos || entry.name.substr(slash) != "/data.pkl") continue;
      require(found == nullptr, ErrorCode::kDataCorrupt, "zip: two records data.pkl");
      found = &entry;
      folder_ = entry.name.substr(0, slash + 1);
    }
    require(found != nullptr, ErrorCode::kDataCorrupt,
            "zip: no record data.pkl: not written by torch.save");
    return *found;
  }

  void read_byte_order() {
    const ZipEntry* record = zip_.find(folder_ + "byteorder");
    if (record == nullptr) return;  // before torch 2.1: little
    const std::string_view order = as_text(zip_.read_stored(*record));
    require(order == "little" || order == "big", ErrorCode::kDataCorrupt, "byteorder: '",
            printable(order), "', expected little or big");
    is_big_endian_ = order == "big";
  }

  const ZipEntry& entry(const TorchStorage& storage) const {
    const ZipEntry* record = zip_.find(str_cat(folder_, "data/", storage.key));
    require(record != nullptr, ErrorCode::kDataCorrupt, "zip: no record data/", storage.key,
            ", which a tensor needs");
    return *record;
  }

  ZipReader zip_;
  std::string folder_;
  bool is_big_endian_ = false;
  std::unordered_set<std::string> verified_;
};

// Five pickles back to back (magic, 1001, system, object, keys), then the storages.
class LegacyContainer : public TorchContainer {
 public:
  LegacyContainer(std::span<const std::byte> file, PickleArena& arena, const Value*& root)
      : rest_(file) {
    rest_ = rest_.subspan(15);  // the magic number, which sniff() has seen
    const Value& version = next_pickle(arena, "version");
    require(version.kind == Value::Kind::kInt && version.integer() == 1001, ErrorCode::kDataCorrupt,
            "legacy file: version ", format_value(version), ", expected 1001");
    const Value& system = next_pickle(arena, "system");
    const Value* is_little = system.find("little_endian");
    require(is_little != nullptr && is_little->kind == Value::Kind::kBool, ErrorCode::kDataCorrupt,
            "legacy file: no little_endian in ", format_value(system));
    require(is_little->boolean(), ErrorCode::kDataCorrupt,
            "legacy file: big-endian, which is not supported; load and save it with Python");
    root = &next_pickle(arena, "object");
    read_storages(arena, next_pickle(arena, "storage keys"));
  }

  std::span<const std::byte> read_storage(const TorchStorage& storage) override {
    return bytes_.at(storage.key);
  }

 private:
  const Value& next_pickle(PickleArena& arena, const char* what) {
    return *with_context(what, [&] {
      Unpickler unpickler(rest_, arena, /*is_legacy=*/true);
      const Value* value = unpickler.run();
      rest_ = rest_.subspan(unpickler.size_bytes());
      return value;
    });
  }

  void read_storages(const PickleArena& arena, const Value& keys) {
    require(keys.kind == Value::Kind::kList, ErrorCode::kDataCorrupt,
            "legacy file: the storage keys are ", value_kind_name(keys.kind), ", expected a list");
    for (const Value* key : keys.items()) {
      require(key->kind == Value::Kind::kString, ErrorCode::kDataCorrupt,
              "legacy file: a storage key is ", value_kind_name(key->kind));
      const auto found = arena.storage_by_key.find(key->text());
      require(found != arena.storage_by_key.end(), ErrorCode::kDataCorrupt,
              "legacy file: storage '", printable(key->text()), "' belongs to no tensor");
      read_storage_bytes(*found->second);
    }
    for (const TorchStorage& storage : arena.storages) {
      require(bytes_.contains(storage.key), ErrorCode::kDataCorrupt, "legacy file: storage ",
              storage.key, " is missing");
    }
    require(rest_.empty(), ErrorCode::kDataCorrupt, "legacy file: ", rest_.size(),
            " bytes follow its last storage");
  }

  void read_storage_bytes(const TorchStorage& storage) {
    require(rest_.size() >= 8, ErrorCode::kDataCorrupt, "legacy file: cut off before storage ",
            storage.key);
    const auto count = load_le<int64_t>(rest_, 0);
    require(count == storage.num_elements, ErrorCode::kDataCorrupt, "storage ", storage.key, ": ",
            storage.num_elements, " elements are declared, ", count, " stored");
    rest_ = rest_.subspan(8);
    const size_t item = storage_item_size(storage);
    require(static_cast<uint64_t>(count) <= rest_.size() / item, ErrorCode::kDataCorrupt,
            "storage ", storage.key, ": needs ", count, " elements of ", item,
            " bytes, the file has only ", rest_.size(), " bytes left: it is cut off");
    const auto size = static_cast<size_t>(count) * item;
    require(bytes_.emplace(storage.key, rest_.first(size)).second, ErrorCode::kDataCorrupt,
            "legacy file: storage ", storage.key, " is listed twice");
    rest_ = rest_.subspan(size);
  }

  std::span<const std::byte> rest_;
  std::unordered_map<std::string, std::span<const std::byte>> bytes_;
};

}  // namespace

std::unique_ptr<TorchContainer> open_torch_container(std::span<const std::byte> file,
                                                     PickleArena& arena, const Value*& root) {
  switch (sniff(file)) {
    case FileKind::kTorchLegacy:
      return std::make_unique<LegacyContainer>(file, arena, root);
    case FileKind::kTorchZip:
      return std::make_unique<ZipContainer>(file, arena, root);
    default:
      throw_error(ErrorCode::kDataCorrupt, "is not a PyTorch file");
  }
}

}  // namespace vgen::io::detail
