// Writes a bash completion script from the table of commands itself, so that it cannot drift.

#include <CLI/CLI.hpp>
#include <cstdio>

#include "commands.h"
#include "vgen/core/strings.h"

namespace vgen::apps {

namespace {

std::string option_names(const CLI::App& command) {
  std::vector<std::string> names;
  for (const CLI::Option* option : command.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  }
  return join(names, " ");
}

std::string bash_script(const CLI::App& root) {
  std::vector<std::string> commands;
  std::string cases;
  for (const CLI::App* command : root.get_subcommands({})) {
    commands.push_back(command->get_name());
    std::vector<std::string> words;
    for (const CLI::App* nested : command->get_subcommands({})) {
      words.push_back(nested->get_name());
      words.push_back(option_names(*nested));
    }
    words.push_back(option_names(*command));
    cases += str_cat("    ", command->get_name(), ") words=\"", join(words, " "), "\" ;;\n");
  }
  return str_cat(
      "_vgen() {\n"
      "  local current=${COMP_WORDS[COMP_CWORD]} words\n"
      "  case $COMP_CWORD in\n"
      "  1) words=\"",
      join(commands, " "), " ", option_names(root),
      "\" ;;\n"
      "  *) case ${COMP_WORDS[1]} in\n",
      cases,
      "    esac ;;\n"
      "  esac\n"
      "  COMPREPLY=($(compgen -W \"$words\" -- \"$current\"))\n"
      "}\n"
      "complete -o default -F _vgen vgen\n");
}

}  // namespace

void add_completion(CLI::App& app) {
  auto* command = app.add_subcommand("completion", "Print a bash completion script");
  command->footer("Example:\n  source <(vgen completion)\n");
  command->callback([&app] { std::fputs(bash_script(app).c_str(), stdout); });
}

}  // namespace vgen::apps
