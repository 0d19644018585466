// The vgen executable: lists the subcommands and turns errors into exit codes.
// 0 all was done; 2 a wrong command line; 1 any other error, told in one line on stderr.

#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdio>
#include <exception>

#include "commands.h"
#include "vgen/core/error.h"
#include "vgen/tensor/allocator.h"

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
    const int code = app.exit(error);  // prints help, version or the complaint
    return code == 0 ? 0 : 2;
  } catch (const vgen::Error& error) {
    std::fprintf(stderr, "vgen: error: %s\n", error.what());
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
