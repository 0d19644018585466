#pragma once

namespace vgen {

/// Makes glibc keep freed memory instead of returning every large block to the system: without it
/// page faults of large activations cost up to two thirds of the time on the CPU. Called once, at
/// the start of main. Memory stays bounded by the process's own peak.
void keep_freed_memory();

}  // namespace vgen
