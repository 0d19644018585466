// The vgen executable: lists the subcommands and turns errors into exit codes.
// 0 all was done; 2 a wrong command line; 1 any other error. Both are told in one line on stderr.

#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <string>

#include "commands.h"
#include "vgen/core/error.h"
#include "vgen/tensor/allocator.h"

namespace {

/// "vgen data verify": the command as far as it was understood.
std::string command_path(const CLI::App& app) {
  std::string path = app.get_name();
  for (const CLI::App* at = &app; !at->get_subcommands().empty();) {
    at = at->get_subcommands().front();
    path += " " + at->get_name();
  }
  return path;
}

}  // namespace

int main(int argc, char** argv) {
  vgen::install_tensor_allocator();
  std::signal(SIGXFSZ, SIG_IGN);  // a file-size limit becomes an error with the path, not a death
  CLI::App app("Train and serve autoregressive image generators: VQGAN, LlamaGen, VAR.", "vgen");
  app.set_version_flag("--version", VGEN_VERSION);
  app.require_subcommand(1);
  app.footer("`vgen COMMAND --help` has an example of each command.\n");
  vgen::apps::add_commands(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // prints help or version
    std::string what = error.what();
    if (app.get_subcommands().empty() && !app.remaining().empty()) {
      what = vgen::str_cat("there is no command '", app.remaining().front(), "'");
    }
    std::fprintf(stderr, "vgen: error: %s; see `%s --help`\n", vgen::printable(what, 500).c_str(),
                 command_path(app).c_str());
    return 2;
  } catch (const vgen::Error& error) {
    std::fprintf(stderr, "vgen: error: %s\n", error.what());
    return 1;
  } catch (const std::filesystem::filesystem_error& error) {  // no permission, a circle of links
    std::fprintf(stderr, "vgen: error: %s: %s; check the path and its permissions\n",
                 error.path1().c_str(), error.code().message().c_str());
    return 1;
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "vgen: error: out of memory; try a smaller batch size\n");
    return 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "vgen: internal error: %s\n", error.what());
    return 1;
  }
  return 0;
}
