#pragma once
// Classes as people name them.

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace vgen::infer {

/// The names of ImageNet-1k, by label.
extern const std::array<const char*, 1000> kImagenetNames;

/// A text file with one name per line, in the order of the labels. Throws Error(kNotFound,
/// kInvalidArgument) when it does not have `num_classes` lines.
std::vector<std::string> read_class_names(const std::string& path, int64_t num_classes);

/// The names of a model with so many classes: ImageNet's for 1000, none otherwise.
std::vector<std::string> default_class_names(int64_t num_classes);

/// Labels of a list such as "207,980-983,golden retriever": labels, ranges of labels, names in any
/// case. Throws Error(kInvalidArgument): a label out of range, an unknown name (with the nearest
/// known one), an empty list.
std::vector<int64_t> parse_classes(const std::string& text, int64_t num_classes,
                                   const std::vector<std::string>& names);

}  // namespace vgen::infer
