#include "vgen/io/state_dict.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <filesystem>
#include <iostream>

#include "support/support.h"
#include "vgen/io/npy.h"
#include "vgen/io/torch_file.h"

using namespace vgen;
using Catch::Contains;

namespace {

std::vector<std::string> names_of(const io::StateDict& state) {
  std::vector<std::string> names;
  for (const auto& tensor : state.tensors) names.push_back(tensor.name);
  return names;
}

// A .pt file whose dicts at these paths ("" = root) each hold one tensor "w" of their index.
void write_layout(const std::string& path, const std::vector<std::string>& keys) {
  io::TorchDict root;
  std::vector<io::Array> arrays;
  for (size_t i = 0; i < keys.size(); ++i) {
    arrays.push_back(io::make_array<int64_t>({1}, {static_cast<int64_t>(i)}));
    io::TorchDict leaf;
    leaf.add("w", {io::ArrayView(arrays.back())});
    const auto parts = split(keys[i], '.');
    if (parts.empty()) {
      root.add("w", {io::ArrayView(arrays.back())});
    } else if (parts.size() == 1) {
      root.add(parts[0], {std::move(leaf)});
    } else {
      if (root.entries.empty() || root.entries.back().first != parts[0]) {
        root.add(parts[0], {io::TorchDict()});
      }
      std::get<io::TorchDict>(root.entries.back().second.value).add(parts[1], {std::move(leaf)});
    }
  }
  io::write_torch_file(path, root);
}

}  // namespace

TEST_CASE("state dict: LlamaGen's layout", "[io][golden]") {
  const std::string path = test::golden("torch-save/valid/ckpt_llamagen.pt");
  const auto model = io::load_state_dict(path);
  CHECK(model.key == "model");
  CHECK(model.source == path);
  CHECK(model.find("lin.weight") != nullptr);
  CHECK(model.find("nobody") == nullptr);
  const auto ema = io::load_state_dict(path, "ema,auto");
  CHECK(ema.key == "ema");
  CHECK(names_of(ema) == names_of(model));
  const auto all = io::load_state_dict(path, "all");
  CHECK(all.find("optimizer.state.0.exp_avg") != nullptr);
  CHECK(all.find("model.lin.weight")->shape == model.find("lin.weight")->shape);
  CHECK(all.metadata.count("args.gpt_model") == 1);
  CHECK_THAT(test::error_of([&] { io::load_state_dict(path, "discriminator"); }),
             Contains(path + ": no key 'discriminator'; it holds model (a dict of ") &&
                 Contains("steps (") && Contains("args (a Namespace of "));
}

TEST_CASE("state dict: VAR's layout", "[io][golden]") {
  const std::string path = test::golden("torch-save/valid/ckpt_var.pt");
  CHECK(io::load_state_dict(path).key == "trainer.var_wo_ddp");
  CHECK(io::load_state_dict(path, "trainer.vae_local").key == "trainer.vae_local");
  CHECK_THAT(test::error_of([&] { io::load_state_dict(path, "trainer.var_opt.state.0"); }),
             Contains("no key 'trainer.var_opt.state.0'"));
  CHECK_THAT(test::error_of([&] { io::load_state_dict(path, "trainer.config"); }),
             Contains("no tensors under 'trainer.config'"));
}

TEST_CASE("state dict: which dict 'auto' takes", "[io]") {
  const test::TempDir dir;
  const auto chosen = [&](const std::vector<std::string>& keys) {
    write_layout(dir / "a.pt", keys);
    const auto state = io::load_state_dict(dir / "a.pt");
    REQUIRE(state.tensors.size() == 1);
    CHECK(keys.at(static_cast<size_t>(state.tensors[0].array.as<int64_t>()[0])) == state.key);
    return state.key;
  };
  CHECK(chosen({""}) == "");
  CHECK(chosen({"ema", "model"}) == "model");
  CHECK(chosen({"state_dict", "module"}) == "module");
  CHECK(chosen({"ema", "state_dict"}) == "state_dict");
  CHECK(chosen({"optimizer", "ema"}) == "ema");
  CHECK(chosen({"trainer.vae_local", "trainer.var_wo_ddp"}) == "trainer.var_wo_ddp");
  CHECK(chosen({"trainer.vae_local"}) == "trainer.vae_local");
  write_layout(dir / "a.pt", {"weights"});
  CHECK_THAT(test::error_of([&] { io::load_state_dict(dir / "a.pt"); }),
             Contains("a.pt: no dict of tensors under model, module, state_dict, ema or at its "
                      "root; it holds weights (a dict of 1)"));
}

TEST_CASE("state dict: plain, legacy, safetensors and npz files", "[io][golden]") {
  CHECK(io::load_state_dict(test::golden("torch-save/valid/fsdp_full_state.pt")).key == "");
  CHECK(io::load_state_dict(test::golden("torch-save/valid/legacy_py2.pt")).tensors.size() > 1);
  const test::TempDir dir;
  const auto one = io::make_array<float>({2}, {1, 2});
  io::write_safetensors(dir / "a.safetensors", {{"w", one}}, {{"format", "pt"}});
  CHECK(io::load_state_dict(dir / "a.safetensors", "ema,auto").metadata.at("format") == "pt");
  CHECK_THAT(test::error_of([&] { io::load_state_dict(dir / "a.safetensors", "ema"); }),
             Contains("no key 'ema': files of this format hold one flat list"));
  // The name does not matter, the content does.
  std::filesystem::rename(dir / "a.safetensors", dir / "a.pt");
  CHECK(io::load_state_dict(dir / "a.pt").find("w")->as<float>()[1] == 2);
  io::NpzWriter npz(dir / "a.npz");
  npz.add("w", one);
  npz.finish();
  CHECK(io::load_state_dict(dir / "a.npz").find("w")->as<float>()[1] == 2);
  io::write_npy(dir / "a.npy", one);
  CHECK_THAT(test::error_of([&] { io::load_state_dict(dir / "a.npy"); }),
             Contains("a.npy: holds one array without a name"));
}

TEST_CASE("state dict: sharded checkpoints and folders", "[io]") {
  const test::TempDir dir;
  const auto one = io::make_array<float>({1}, {1});
  const std::string index = dir / "model.safetensors.index.json";
  io::write_safetensors(dir / "m-1.safetensors", {{"a", one}, {"extra", one}});
  write_layout(dir / "m-2.bin", {""});
  const auto write_index = [&](const std::string& map) {
    test::write_file(index, R"({"metadata":{"total_size":1},"weight_map":{)" + map + "}}");
  };
  write_index(R"("a":"m-1.safetensors","w":"m-2.bin")");
  CHECK(names_of(io::load_state_dict(index)) == std::vector<std::string>{"a", "w"});
  CHECK(names_of(io::load_state_dict(dir.path())) == std::vector<std::string>{"a", "w"});
  write_index(R"("a":"m-1.safetensors","b":"m-2.bin")");
  CHECK_THAT(test::error_of([&] { io::load_state_dict(index); }),
             Contains("m-2.bin: lacks tensor 'b'"));
  write_index(R"("a":"m-3.safetensors")");
  CHECK_THAT(test::error_of([&] { io::load_state_dict(index); }),
             Contains("m-3.safetensors: no such file"));
  write_index(R"("a":"model.safetensors.index.json")");
  CHECK_THAT(test::error_of([&] { io::load_state_dict(index); }), Contains("is an index itself"));

  const test::TempDir run;
  CHECK_THAT(test::error_of([&] { io::load_state_dict(run.path()); }),
             Contains("a folder without weights; looked for model.safetensors.index.json"));
  io::write_safetensors(run / "model.safetensors", {{"m", one}});
  io::write_safetensors(run / "ema.safetensors", {{"e", one}});
  CHECK(names_of(io::load_state_dict(run.path())) == std::vector<std::string>{"m"});
  CHECK(names_of(io::load_state_dict(run.path(), "ema,auto")) == std::vector<std::string>{"e"});
}

TEST_CASE("state dict: a path that leads nowhere", "[io]") {
  CHECK_THAT(test::error_of([] { io::load_state_dict("/nonexistent/x.pt"); }),
             Contains("/nonexistent/x.pt: no such file"));
  CHECK_THAT(test::error_of([] { io::load_state_dict("/dev/null"); }),
             Contains("/dev/null: is not a regular file"));
}

// The checkpoints beside the project, where a developer has them: real layouts, some MB in all.
TEST_CASE("state dict: every checkpoint of ../shared/golden", "[io][golden]") {
  namespace fs = std::filesystem;
  const fs::path folder = test::project_path("../shared/golden");
  if (!fs::is_directory(folder)) {
    std::cout << "skipped here: no folder ../shared/golden beside the project" << std::endl;
    return;
  }
  size_t count = 0;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    const std::string path = entry.path().string();
    const std::string extension = entry.path().extension().string();
    const bool is_checkpoint = extension == ".pt" || extension == ".pth" ||
                               extension == ".safetensors" || path.ends_with(".index.json");
    if (!is_checkpoint || path.find("torch-save") != std::string::npos) continue;
    CAPTURE(path);
    CHECK(!io::load_state_dict(path).tensors.empty());
    CHECK(!io::load_state_dict(path, "all").tensors.empty());
    ++count;
    // Pairs of formats hold the same bits.
    const fs::path twin = fs::path(path).replace_extension(".safetensors");
    if (extension == ".safetensors" || !fs::exists(twin)) continue;
    const auto a = io::load_state_dict(path), b = io::load_state_dict(twin.string());
    CHECK(a.tensors.size() == b.tensors.size());
    for (const auto& [name, array] : b.tensors) {
      CAPTURE(name);
      REQUIRE(a.find(name) != nullptr);
      CHECK(a.find(name)->shape == array.shape);
      CHECK(std::ranges::equal(a.find(name)->data, array.data));
    }
  }
  CHECK(count > 0);
}
