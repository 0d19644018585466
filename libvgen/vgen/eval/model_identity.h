#pragma once
// What tells the models of one drawing from those of another, whatever their paths say.

#include "vgen/eval/sample.h"
#include "vgen/io/json.h"

namespace vgen::eval {

/// {"checkpoint_file", "checkpoint_fingerprint", "tokenizer_file", "tokenizer_fingerprint"}: the
/// files that weights are taken from (of a run folder its newest checkpoint) and fingerprints
/// (infer/fingerprint.h) of all that is in them and in their configs. Reads every weight once and
/// packs none. Throws Error as the loaders do.
io::Json identify_models(const SampleConfig& config);

}  // namespace vgen::eval
