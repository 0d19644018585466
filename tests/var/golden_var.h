#pragma once
// The golden models of the VAR tests.

#include <torch/torch.h>

#include <string>

#include "vgen/var/transformer.h"

namespace vgen::test {

/// The config of golden/var, var_saln, var_from_2 or train_var (their meta.json), nothing dropped.
var::VarConfig golden_var_config(const std::string& name);

/// var, var_saln or var_from_2 with its golden weights, in eval mode.
var::VarTransformer golden_var(const std::string& name);

}  // namespace vgen::test
