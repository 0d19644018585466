#pragma once
// Images through a tokenizer into a code dataset (codes/code_shard.h): `vgen extract`.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "vgen/data/dataset.h"
#include "vgen/dist/launch.h"
#include "vgen/extract/verify.h"
#include "vgen/infer/load_tokenizer.h"

namespace vgen::extract {

struct ExtractConfig {
  std::string tokenizer;                        ///< as infer::load_tokenizer
  infer::TokenizerOptions tokenizer_options;    ///< weights, config, device, precision
  data::DatasetConfig input;                    ///< the images; `repeat` does not count
  std::string out;                              ///< folder of the codes
  std::vector<std::string> crops = {"center"};  ///< codes::parse_crop_set, in this order
  int64_t image_size = 0;                       ///< side of a crop; 0 = of the run, else 256
  int64_t limit = 0;                            ///< take the first images only; 0 = all
  int64_t batch_size = 32;                      ///< crops through the tokenizer at once
  int64_t shard_size = 1024;                    ///< images per shard: what a kill costs at most
  int64_t threads = 0;                          ///< of LibTorch; 0 = one per core
  int64_t workers = 2;                          ///< decoding threads
  int64_t min_side = 1;                         ///< smaller images count as broken
  std::string on_broken = "skip";               ///< skip, fail
  std::string official_layout;  ///< also write codes::OfficialWriter's files; "" = no
  int64_t verify = 0;           ///< crops to check afterwards, see verify.h
};

struct ExtractResult {
  int64_t images = 0;        ///< of all ranks once is_complete, else of this one
  int64_t broken = 0;        ///< left out by this run
  int64_t new_shards = 0;    ///< written by this run
  int64_t kept_shards = 0;   ///< were there already
  bool is_complete = false;  ///< all shards of all ranks are there, and the index
  double seconds = 0;
  double crops_per_second = 0;  ///< of what this run encoded
  std::string tokenizer;        ///< fingerprint
  std::optional<VerifyResult> verify;
};

/// Encodes the images that are not encoded yet. Every shard appears in one step; its bytes do not
/// depend on where a run was interrupted or on the number of ranks. Rank r of `launch` writes the
/// shards r, r + world_size, ...; ranks need not run at the same time, the last to finish writes
/// index.json. Shards that are damaged are made again. Broken images are left out, or fatal.
///
/// Throws Error: kInvalidArgument when `out` holds codes of other images, settings or another
/// tokenizer (what differs), or an image size that the tokenizer cannot take; kDataCorrupt when no
/// image can be read or verify() fails; kUnavailable for a full disk: what is finished stays, the
/// same call goes on; what the readers throw.
ExtractResult extract(const ExtractConfig& config, const dist::Launch& launch = {});

/// The same with a tokenizer that is loaded already; config.tokenizer is not looked at,
/// config.tokenizer_options.precision only recorded. config.image_size must be given.
ExtractResult extract_with(const infer::ImageTokenizer& tokenizer, const ExtractConfig& config,
                           const dist::Launch& launch = {});

}  // namespace vgen::extract
