#include "commands.h"

#include <CLI/CLI.hpp>

namespace vgen::apps {

void add_commands(CLI::App& app) {
  add_train(app);
  add_extract(app);
  add_reconstruct(app);
  add_sample(app);
  add_edit(app);
  add_evaluate(app);
  add_inspect(app);
  add_convert(app);
  add_data(app);
  add_bench(app);
  add_doctor(app);
  add_completion(app);
}

}  // namespace vgen::apps
