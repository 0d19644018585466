#include "vgen/io/detail/npy_header.h"

#include <algorithm>

#include "vgen/core/error.h"
#include "vgen/io/detail/bytes.h"

namespace vgen::io::detail {
namespace {

constexpr std::string_view kMagic("\x93NUMPY", 6);
constexpr size_t kMaxHeaderSize = 1u << 20;
constexpr size_t kMaxRank = 64;

struct DescrRow {
  std::string_view descr;  // kind and item size
  Dtype dtype;
};
constexpr DescrRow kDescrs[] = {
    {"b1", Dtype::kBool},      {"u1", Dtype::kUInt8},       {"i1", Dtype::kInt8},
    {"u2", Dtype::kUInt16},    {"i2", Dtype::kInt16},       {"f2", Dtype::kFloat16},
    {"u4", Dtype::kUInt32},    {"i4", Dtype::kInt32},       {"f4", Dtype::kFloat32},
    {"u8", Dtype::kUInt64},    {"i8", Dtype::kInt64},       {"f8", Dtype::kFloat64},
    {"c8", Dtype::kComplex64}, {"c16", Dtype::kComplex128},
};

// The few Python literals that a header may hold.
class HeaderParser {
 public:
  explicit HeaderParser(std::string_view text) : text_(text) {}

  NpyHeader parse() {
    NpyHeader header;
    expect('{');
    while (!accept('}')) {
      const std::string_view key = string();
      expect(':');
      if (key == "descr") {
        require_first(has_descr_, key);
        parse_descr(header);
      } else if (key == "fortran_order") {
        require_first(has_order_, key);
        header.is_fortran_order = boolean();
      } else if (key == "shape") {
        require_first(has_shape_, key);
        header.shape = shape();
      } else {
        throw_error(ErrorCode::kDataCorrupt, "npy: unknown header field '", printable(key), "'");
      }
      if (!accept(',')) {
        expect('}');
        break;
      }
    }
    require(has_descr_ && has_order_ && has_shape_, ErrorCode::kDataCorrupt,
            "npy: the header lacks ",
            !has_descr_   ? "descr"
            : !has_order_ ? "fortran_order"
                          : "shape");
    skip_space();
    require(text_.empty(), ErrorCode::kDataCorrupt, "npy: text after the header: '",
            printable(text_, 20), "'");
    return header;
  }

 private:
  static void require_first(bool& seen, std::string_view key) {
    require(!seen, ErrorCode::kDataCorrupt, "npy: header field '", key, "' occurs twice");
    seen = true;
  }
  void skip_space() {
    const size_t end = text_.find_first_not_of(" \n\t\r");
    text_.remove_prefix(std::min(end, text_.size()));
  }
  bool accept(char c) {
    skip_space();
    if (!text_.starts_with(c)) return false;
    text_.remove_prefix(1);
    return true;
  }
  void expect(char c) {
    require(accept(c), ErrorCode::kDataCorrupt, "npy: the header has '", printable(text_, 20),
            "', expected '", c, "'");
  }
  std::string_view string() {
    expect('\'');
    const size_t end = text_.find('\'');
    require(end != std::string_view::npos, ErrorCode::kDataCorrupt,
            "npy: a text of the header does not end");
    const std::string_view value = text_.substr(0, end);
    text_.remove_prefix(end + 1);
    return value;
  }
  bool boolean() {
    skip_space();
    for (const bool value : {true, false}) {
      const std::string_view word = value ? "True" : "False";
      if (!text_.starts_with(word)) continue;
      text_.remove_prefix(word.size());
      return value;
    }
    throw_error(ErrorCode::kDataCorrupt, "npy: fortran_order is '", printable(text_, 20),
                "', expected True or False");
  }
  std::vector<int64_t> shape() {
    std::vector<int64_t> sizes;
    expect('(');
    while (!accept(')')) {
      skip_space();
      const size_t digits = std::min(text_.find_first_not_of("0123456789"), text_.size());
      int64_t size = 0;
      require(parse_int(text_.substr(0, digits), size), ErrorCode::kDataCorrupt,
              "npy: the shape has '", printable(text_, 20), "', expected an integer of at least 0");
      text_.remove_prefix(digits);
      if (text_.starts_with('L')) text_.remove_prefix(1);  // Python 2 wrote 3L
      require(sizes.size() < kMaxRank, ErrorCode::kDataCorrupt, "npy: more than ", kMaxRank,
              " dimensions");
      sizes.push_back(size);
      if (accept(',')) continue;
      // (3) without a comma is no tuple, but a number in brackets.
      require(sizes.size() > 1, ErrorCode::kDataCorrupt, "npy: the shape is not a tuple");
      expect(')');
      break;
    }
    return sizes;
  }
  void parse_descr(NpyHeader& header) {
    skip_space();
    require(text_.starts_with('\''), ErrorCode::kDataCorrupt,
            "npy: structured arrays are not supported, expected a plain number type");
    const std::string_view descr = string();
    const std::string_view orders = "<>|=";
    const size_t order_size = !descr.empty() && orders.find(descr[0]) != orders.npos ? 1 : 0;
    const std::string_view kind = descr.substr(order_size);
    require(!kind.starts_with('O'), ErrorCode::kDataCorrupt,
            "npy: holds Python objects (a pickle), which are never loaded; save numbers");
    for (const DescrRow& row : kDescrs) {
      if (row.descr != kind) continue;
      header.dtype = row.dtype;
      header.is_big_endian = descr.starts_with('>') && item_size(row.dtype) > 1;
      return;
    }
    throw_error(ErrorCode::kDataCorrupt, "npy: type '", printable(descr),
                "' is not supported, expected a bool, integer, float or complex type");
  }

  std::string_view text_;
  bool has_descr_ = false, has_order_ = false, has_shape_ = false;
};

}  // namespace

NpyHeader parse_npy_header(std::span<const std::byte> file) {
  const std::string_view text = as_text(file);
  require(text.starts_with(kMagic), ErrorCode::kDataCorrupt, "not a .npy file: it starts with '",
          printable(text.substr(0, 6)), "'");
  require(text.size() >= 10, ErrorCode::kDataCorrupt, "npy: the file is cut off in its header");
  const int major = static_cast<unsigned char>(text[6]);
  require(major >= 1 && major <= 3, ErrorCode::kDataCorrupt, "npy: format version ", major,
          ", expected 1, 2 or 3");
  const size_t start = major == 1 ? 10 : 12;
  require(text.size() >= start, ErrorCode::kDataCorrupt, "npy: the file is cut off in its header");
  const size_t size = major == 1 ? load_le<uint16_t>(file, 8) : load_le<uint32_t>(file, 8);
  require(size <= text.size() - start && size <= kMaxHeaderSize, ErrorCode::kDataCorrupt,
          "npy: a header of ", size, " bytes is declared in a file of ", text.size());
  NpyHeader header = HeaderParser(text.substr(start, size)).parse();
  header.data_offset = start + size;
  return header;
}

std::string make_npy_header(Dtype dtype, const std::vector<int64_t>& shape) {
  const auto* row = std::ranges::find(kDescrs, dtype, &DescrRow::dtype);
  require(row != std::end(kDescrs), ErrorCode::kInvalidArgument, "NumPy has no type for ",
          dtype_name(dtype), "; convert it to float32 first, or write .safetensors");
  std::string sizes;
  for (const int64_t size : shape) sizes += str_cat(size, shape.size() == 1 ? "," : ", ");
  if (shape.size() > 1) sizes.resize(sizes.size() - 2);
  std::string dict = str_cat("{'descr': '", item_size(dtype) == 1 ? '|' : '<', row->descr,
                             "', 'fortran_order': False, 'shape': (", sizes, "), }");
  const bool is_long = dict.size() > 65000;
  const size_t start = is_long ? 12 : 10;
  dict.append((64 - (start + dict.size() + 1) % 64) % 64, ' ');
  dict.push_back('\n');
  std::string out(kMagic);
  out += is_long ? std::string("\2\0", 2) : std::string("\1\0", 2);
  if (is_long) {
    append_le<uint32_t>(out, static_cast<uint32_t>(dict.size()));
  } else {
    append_le<uint16_t>(out, static_cast<uint16_t>(dict.size()));
  }
  return out + dict;
}

}  // namespace vgen::io::detail
