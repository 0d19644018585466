#pragma once
// One function per subcommand, each in the file of its name; commands.cpp has the table.

namespace CLI {
class App;
}

namespace vgen::apps {

void add_train(CLI::App& app);
void add_extract(CLI::App& app);
void add_reconstruct(CLI::App& app);
void add_sample(CLI::App& app);
void add_edit(CLI::App& app);
void add_evaluate(CLI::App& app);
void add_bench_gpt(CLI::App& bench);
void add_bench_gpt_train(CLI::App& bench);
void add_bench_var(CLI::App& bench);
void add_bench_var_train(CLI::App& bench);
void add_bench_var_attention(CLI::App& bench);
void add_bench_compare(CLI::App& bench);
void add_bench_collectives(CLI::App& bench);
void add_inspect(CLI::App& app);
void add_convert(CLI::App& app);
void add_data(CLI::App& app);
void add_bench(CLI::App& app);
void add_doctor(CLI::App& app);
void add_completion(CLI::App& app);

/// All of the above, in the order of --help.
void add_commands(CLI::App& app);

}  // namespace vgen::apps
