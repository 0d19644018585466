#pragma once
// What the tests of plans share.

#include <catch2/catch.hpp>
#include <string>

#include "support/support.h"
#include "vgen/train/plan.h"

namespace vgen::test {

inline ConfigNode yaml(const std::string& text) { return parse_yaml(text, "test"); }

/// Of a config by its text; options.config is set here.
inline train::PlanReport plan(const std::string& config, train::PlanOptions options = {}) {
  const TempDir dir;
  write_file(dir / "run.yaml", config);
  options.config = dir / "run.yaml";
  return train::plan_training(options);
}

inline const train::PlanRow& row_of(const train::PlanReport& report, const std::string& strategy,
                                    bool is_checkpointed) {
  for (const train::PlanRow& row : report.rows) {
    if (row.strategy == strategy && row.is_checkpointed == is_checkpointed) return row;
  }
  FAIL("no row " << strategy);
  return report.rows.front();
}

}  // namespace vgen::test
