#pragma once
// A piece of work of which every rank does its share, and which succeeds on all or on none.

#include <functional>
#include <string>
#include <vector>

#include "vgen/dist/group.h"

namespace vgen::dist {

/// Runs `share` on every rank and returns what each rank's returned, in their order. Where one
/// throws, all throw the error of the lowest such rank, "rank 2: ...", so that nobody waits for it
/// in a later collective. Collective; it returns nowhere before the work is done everywhere.
std::vector<std::string> together(Group& group, const std::function<std::string()>& share);

}  // namespace vgen::dist
