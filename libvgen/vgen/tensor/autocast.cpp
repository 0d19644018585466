#include "vgen/tensor/autocast.h"

#include <ATen/autocast_mode.h>

namespace vgen {

Autocast::Autocast(c10::Device device, c10::ScalarType dtype)
    : type_(device.type()),
      was_enabled_(at::autocast::is_autocast_enabled(type_)),
      old_dtype_(at::autocast::get_autocast_dtype(type_)) {
  at::autocast::set_autocast_enabled(type_, dtype != c10::kFloat);
  if (dtype != c10::kFloat) at::autocast::set_autocast_dtype(type_, dtype);
  at::autocast::increment_nesting();
}

Autocast::~Autocast() {
  if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
  at::autocast::set_autocast_enabled(type_, was_enabled_);
  at::autocast::set_autocast_dtype(type_, old_dtype_);
}

c10::ScalarType autocast_dtype(c10::Device device, c10::ScalarType otherwise) {
  const auto type = device.type();
  return at::autocast::is_autocast_enabled(type) ? at::autocast::get_autocast_dtype(type)
                                                 : otherwise;
}

}  // namespace vgen
