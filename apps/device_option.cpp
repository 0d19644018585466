#include "device_option.h"

#include <CLI/CLI.hpp>

#include "vgen/tensor/tf32.h"

namespace vgen::apps {

void add_device_options(CLI::App& command, std::string& device) {
  command.add_option("--device", device, "auto, cpu, cuda or cuda:N")->capture_default_str();
  command.add_flag_callback(
      "--allow-tf32", [] { allow_tf32(true); },
      "On CUDA: matrix products of fp32 may round what they multiply to TF32, 10 bits of "
      "mantissa, as its convolutions may in any case");
}

}  // namespace vgen::apps
