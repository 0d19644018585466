#include "vgen/data/detail/quiet_cerr.h"

#include <iostream>
#include <streambuf>

namespace vgen::data::detail {
namespace {

thread_local int quiet_depth = 0;

/// Passes everything on, but from a thread that is quiet.
class Filter : public std::streambuf {
 public:
  explicit Filter(std::streambuf* behind) : behind_(behind) {}

 protected:
  int_type overflow(int_type c) override {
    if (quiet_depth > 0 || traits_type::eq_int_type(c, traits_type::eof())) {
      return traits_type::not_eof(c);
    }
    return behind_->sputc(traits_type::to_char_type(c));
  }
  std::streamsize xsputn(const char* text, std::streamsize size) override {
    return quiet_depth > 0 ? size : behind_->sputn(text, size);
  }
  int sync() override { return quiet_depth > 0 ? 0 : behind_->pubsync(); }

 private:
  std::streambuf* behind_;
};

/// Never destroyed: std::cerr is written to until the very end.
bool install_filter() {
  std::cerr.rdbuf(new Filter(std::cerr.rdbuf()));
  return true;
}

}  // namespace

QuietCerr::QuietCerr() {
  [[maybe_unused]] static const bool is_installed = install_filter();
  ++quiet_depth;
}

QuietCerr::~QuietCerr() { --quiet_depth; }

}  // namespace vgen::data::detail
