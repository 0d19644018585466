#include "vgen/core/config.h"

#include <catch2/catch.hpp>

#include "support/support.h"

namespace vgen {

namespace {

struct StageConfig {
  double lr = 0.1;
  double share = 1;
};
template <class Visitor>
void visit_fields(Visitor& v, StageConfig& c) {
  v("lr", c.lr, more_than(0));
  v("share", c.share, more_than(0, 1));
}

struct ModelConfig {
  int64_t n_layer = 12;
  double dropout = 0.1;
  std::string loss = "l2";
  std::vector<int64_t> ch_mult = {1, 2, 4};
};
template <class Visitor>
void visit_fields(Visitor& v, ModelConfig& c) {
  v("n_layer", c.n_layer, at_least(1));
  v("dropout", c.dropout, between(0, 1));
  v("loss", c.loss, one_of({"l1", "l2"}));
  v("ch_mult", c.ch_mult, at_least(1));
}

struct RunConfig {
  std::string name = "run";
  bool use_ema = true;
  ModelConfig model;
  std::vector<StageConfig> stages;
};
template <class Visitor>
void visit_fields(Visitor& v, RunConfig& c) {
  v("name", c.name);
  v("use_ema", c.use_ema);
  v("model", c.model);
  v("stages", c.stages);
}

struct NarrowConfig {
  ModelConfig model;
};
template <class Visitor>
void visit_fields(Visitor& v, NarrowConfig& c) {
  v("model", c.model, only("loss", {"l2"}));
}

RunConfig parse(const std::string& yaml, const std::vector<std::string>& overrides = {}) {
  ConfigNode node = parse_yaml(yaml, "run.yaml");
  for (const std::string& assignment : overrides) apply_override(node, assignment);
  return read_config<RunConfig>(node);
}

std::string error_in(const std::string& yaml, const std::vector<std::string>& overrides = {}) {
  return test::error_of([&] { parse(yaml, overrides); });
}

}  // namespace

TEST_CASE("config: fields not named keep their defaults", "[core]") {
  const RunConfig config = parse("model:\n  n_layer: 6\n  ch_mult: [1, 1, 2]\nuse_ema: false\n");
  CHECK(config.name == "run");
  CHECK_FALSE(config.use_ema);
  CHECK(config.model.n_layer == 6);
  CHECK(config.model.dropout == 0.1);
  CHECK(config.model.ch_mult == std::vector<int64_t>{1, 1, 2});
  CHECK(parse("").model.n_layer == 12);
  CHECK(parse("model:\n").model.n_layer == 12);
}

TEST_CASE("config: an unknown key names its line and the nearest field", "[core]") {
  CHECK(error_in("name: a\nmodel:\n  n_layr: 3\n") ==
        "run.yaml:3: unknown key 'model.n_layr', is it 'n_layer'?");
  CHECK(error_in("zzzzzzzz: 1\n") ==
        "run.yaml:1: unknown key 'zzzzzzzz', expected one of: name, use_ema, model, stages");
}

TEST_CASE("config: values of another type or out of range are refused", "[core]") {
  CHECK(error_in("model: {n_layer: six}") ==
        "run.yaml:1: 'model.n_layer': expected a whole number, found 'six'");
  CHECK(error_in("model: {n_layer: 1.5}") ==
        "run.yaml:1: 'model.n_layer': expected a whole number, found '1.5'");
  CHECK(error_in("model: {n_layer: '6'}") ==
        "run.yaml:1: 'model.n_layer': expected a whole number, found '6'");
  CHECK(error_in("model: {n_layer: 0}") ==
        "run.yaml:1: 'model.n_layer': expected at least 1, found '0'");
  CHECK(error_in("model: {dropout: 1.5}") ==
        "run.yaml:1: 'model.dropout': expected from 0 to 1, found '1.5'");
  CHECK(error_in("model: {dropout: .nan}") ==
        "run.yaml:1: 'model.dropout': expected a number, found '.nan'");
  CHECK(error_in("model: {loss: l3}") ==
        "run.yaml:1: 'model.loss': expected one of l1, l2; found 'l3'");
  CHECK(error_in("model: {ch_mult: 4}") ==
        "run.yaml:1: 'model.ch_mult': expected a list, found '4'");
  CHECK(error_in("model: {ch_mult: [1, 0]}") ==
        "run.yaml:1: 'model.ch_mult.1': expected at least 1, found '0'");
  CHECK(error_in("use_ema: yes") == "run.yaml:1: 'use_ema': expected true or false, found 'yes'");
  CHECK(error_in("model: 3") == "run.yaml:1: 'model': expected keys, found '3'");
  CHECK(error_in("name: [a]") == "run.yaml:1: 'name': expected text, found a list");
  CHECK(error_in("stages: [{lr: 1}, {lr: 0}]") ==
        "run.yaml:1: 'stages.1.lr': expected more than 0, found '0'");
  for (const std::string share : {"0", "1.01"}) {
    CHECK(error_in(str_cat("stages: [{share: ", share, "}]")) ==
          str_cat("run.yaml:1: 'stages.0.share': expected more than 0, at most 1, found '", share,
                  "'"));
  }
  CHECK(parse("stages: [{share: 1}]").stages[0].share == 1);
}

TEST_CASE("config: a struct's field may have fewer choices where the struct is used", "[core]") {
  const auto error = [](const std::string& yaml) {
    return test::error_of([&] { read_config<NarrowConfig>(parse_yaml(yaml, "run.yaml")); });
  };
  CHECK(error("model:\n  n_layer: 2\n  loss: l1\n") ==
        "run.yaml:3: 'model.loss': expected l2; found 'l1'");
  CHECK(error("model: {loss: l3}") ==
        "run.yaml:1: 'model.loss': expected one of l1, l2; found 'l3'");
  for (const char* yaml : {"model: {loss: l2}", "model: {loss: }", "model: {n_layer: 2}", ""}) {
    CHECK(read_config<NarrowConfig>(parse_yaml(yaml, "run.yaml")).model.loss == "l2");
  }
  CHECK_THAT(dump_config(NarrowConfig()), Catch::Contains("  loss: l2\n"));
}

TEST_CASE("config: broken YAML is an error with its line", "[core]") {
  CHECK(error_in("name: a\nname: b\n") == "run.yaml:2: duplicate key 'name'");
  CHECK_THAT(error_in("name: [a\n"), Catch::StartsWith("run.yaml:2: not valid YAML: "));
  CHECK_THAT(error_in("a: 1\n---\nb: 2\n"), Catch::Contains("more than one YAML document"));
  CHECK_THAT(error_in("!,"), Catch::Contains("more than one YAML document"));
  std::string bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n";
  for (char c = 'b'; c < 'h'; ++c) {
    bomb += std::string(1, c) + ": &" + c + " [";
    for (int i = 0; i < 10; ++i) bomb += std::string(i ? ", *" : "*") + static_cast<char>(c - 1);
    bomb += "]\n";
  }
  CHECK_THAT(error_in(bomb), Catch::Contains("more than 100000 values"));
  CHECK_THAT(error_in(std::string(200, '[') + std::string(200, ']')),
             Catch::Contains("nested more than 64 levels deep"));
}

TEST_CASE("config: overrides go on top and are checked the same", "[core]") {
  CHECK(parse("model: {n_layer: 6}", {"model.n_layer=8", "name=b"}).model.n_layer == 8);
  CHECK(parse("", {"model.ch_mult=[3, 3]"}).model.ch_mult == std::vector<int64_t>{3, 3});
  CHECK(parse("stages: [{lr: 1}, {lr: 2}]", {"stages.1.lr=3"}).stages[1].lr == 3);
  CHECK(error_in("", {"model.n_layr=8"}) ==
        "--set model.n_layr=8: unknown key 'model.n_layr', is it 'n_layer'?");
  CHECK(error_in("", {"model.n_layer=x"}) ==
        "--set model.n_layer=x: 'model.n_layer': expected a whole number, found 'x'");
  CHECK(error_in("", {"model"}) == "--set model: expected key=value, for example model.n_layer=6");
  CHECK(error_in("name: a", {"name.b=1"}) == "--set name.b=1: nothing is below 'a'");
  CHECK(error_in("stages: []", {"stages.0.lr=1"}) ==
        "--set stages.0.lr=1: '0' is no item of a list of 0");
}

TEST_CASE("config: the resolved config reads back as the same struct", "[core]") {
  RunConfig config = parse("model: {n_layer: 6, dropout: 1e-7}\nstages: [{lr: 3}]\n");
  config.name = "true";  // text that YAML would take for something else
  const std::string text = dump_config(config);
  const RunConfig again = parse(text);
  CHECK(again.name == "true");
  CHECK(again.model.dropout == 1e-7);
  CHECK(again.stages.size() == 1);
  CHECK(dump_config(again) == text);
  for (const char* name : {"a: b # c \"d\"\n\\", "a\rb", "\r"}) {
    config.name = name;
    CHECK(parse(dump_config(config)).name == name);
  }
}

TEST_CASE("config: include puts the base under the file", "[core]") {
  const test::TempDir dir;
  test::write_file(dir / "base.yaml", "name: base\nmodel: {n_layer: 3, loss: l1}\n");
  test::write_file(dir / "run.yaml", "include: base.yaml\nmodel: {n_layer: 4}\n");
  const auto config = load_config<RunConfig>(dir / "run.yaml", {"use_ema=false"});
  CHECK(config.name == "base");
  CHECK(config.model.loss == "l1");
  CHECK(config.model.n_layer == 4);
  CHECK_FALSE(config.use_ema);

  test::write_file(dir / "loop.yaml", "include: [base.yaml, loop.yaml]\n");
  CHECK_THAT(test::error_of([&] { load_config<RunConfig>(dir / "loop.yaml"); }),
             Catch::Contains("includes itself"));
  test::write_file(dir / "typo.yaml", "include: base.yaml\nmodel: {n_layr: 4}\n");
  CHECK(test::error_of([&] { load_config<RunConfig>(dir / "typo.yaml"); }) ==
        dir / "typo.yaml:2: unknown key 'model.n_layr', is it 'n_layer'?");
  test::write_file(dir / "missing.yaml", "include: none.yaml\n");
  CHECK_THAT(test::error_of([&] { load_config<RunConfig>(dir / "missing.yaml"); }),
             Catch::Contains("none.yaml: cannot read this config file"));
  CHECK_THAT(test::error_of([&] { load_config<RunConfig>(dir.path()); }),
             Catch::Contains("cannot read this config file"));
  test::write_file(dir / "list.yaml", "- 1\n- 2\n");
  CHECK_THAT(test::error_of([&] { load_config<RunConfig>(dir / "list.yaml"); }),
             Catch::Contains("expected `key: value` lines, found a list"));
}

TEST_CASE("config: what is not text is no config", "[core]") {
  CHECK(error_in("name: a\nuse_ema: \x01\n") ==
        "run.yaml:2: not text: byte 1 is a control character; is this a config?");
  for (const char* bytes : {"\xff", "\xc3", "\xc3(", "\xc0\xaf", "\xe0\x80\x80", "\xed\xa0\x80",
                            "\xf5\x80\x80\x80", "\xe2\x82", "\x80"}) {
    CHECK_THAT(error_in(std::string("name: ") + bytes + "\n"), Catch::Contains("is not UTF-8"));
  }
  CHECK_THAT(error_in("name: a\rname: b\n"), Catch::Contains("byte 13 is a control character"));
  CHECK(parse("name: windows\r\n").name == "windows");
  // Two, three and four bytes.
  CHECK(parse("name: \xc3\xa9\xe2\x82\xac\xf0\x9f\x99\x82\n").name ==
        "\xc3\xa9\xe2\x82\xac\xf0\x9f\x99\x82");
}

}  // namespace vgen
