#pragma once
// Where a command computes.

#include <string>

namespace CLI {
class App;
}

namespace vgen::apps {

/// --device, as parse_device takes it, and --allow-tf32, which holds for the whole process.
void add_device_options(CLI::App& command, std::string& device);

}  // namespace vgen::apps
