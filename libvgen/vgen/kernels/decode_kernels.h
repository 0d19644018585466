#pragma once
// The inner loops of token-by-token decoding on the CPU, one set per instruction level. All are
// single-threaded, allocate nothing and compute in float32. The number that lands in a row never
// depends on the other rows, so neither batch size nor thread count changes a token.
// packed_linear.h and kv_cache.h are what other rooms use.

#include <cstddef>
#include <cstdint>

#include "vgen/kernels/cpu_isa.h"

namespace vgen::kernels {

/// How numbers are stored: weights in any of them, keys and values in the first two.
enum class Storage { kFloat32, kBFloat16, kInt8 };

/// Outputs per block of a packed weight. Within a block the weights lie as [k][32] (float32, int8)
/// or as [k / 2][32][2] (bfloat16): one stream from memory, 32 outputs at a time, no horizontal
/// sums.
inline constexpr int64_t kLinearBlock = 32;
/// Inputs per chunk where there are many rows: rows of a chunk lie close together, while rows that
/// are a power of two apart would displace each other from the first cache.
inline constexpr int64_t kInputChunk = 128;
inline constexpr int64_t kManyRows = 13;  ///< from so many rows on chunks pay, for floats
/// Positions per block of cached keys: [t / 16][d][16], bfloat16 [t / 16][d / 2][16][2].
inline constexpr int64_t kKeyBlock = 16;

/// Where products are done in tiles (AMX, bfloat16 weights), inputs are cut into tiles of 16 rows
/// and 32 inputs: rounded to bfloat16, and with two parts what that leaves, rounded too; their sum
/// is the input to 17 bits. [row tile][input tile][part][16][32] bfloat16; where fewer than 16 rows
/// are all that there are, the rest of a tile is unset.
inline constexpr int64_t kTileRows = 16;
inline constexpr int64_t kTileInputs = 32;
inline constexpr int64_t kTileBytes = kTileRows * kTileInputs * 2;

enum class Epilogue {
  kStore,     ///< y = x W^T + bias
  kAdd,       ///< y += x W^T
  kSwiGlu,    ///< each block is 16 rows of w1 and 16 of w3: y = silu(x w1^T) * (x w3^T)
  kGelu,      ///< y = gelu(x W^T + bias), by tanh
  kAddGated,  ///< y += gate * (x W^T + bias)
};

/// Factors of outputs, a row of them for so many rows of y.
struct Gate {
  const float* values = nullptr;  ///< (.., outputs)
  int64_t stride = 0;             ///< from row to row
  int64_t rows = 1;               ///< of y that share one
};

struct LinearArgs {
  const std::byte* weight = nullptr;
  const float* scale = nullptr;  ///< int8: one factor per packed output
  const float* bias = nullptr;   ///< of each packed output, or null; not of kAdd and kSwiGlu
  int64_t in_features = 0;       ///< even
  int64_t num_outputs = 0;       ///< columns of y: packed outputs, half of them for kSwiGlu
  const float* x = nullptr;      ///< (num_rows, in_features), or with has_chunks cut along the
                                 ///< inputs: (in_features / kInputChunk, num_rows, kInputChunk)
  bool has_chunks = false;
  const std::byte* x_tiles = nullptr;  ///< instead of x, for TileKernels;
                                       ///< in_features is a multiple of kTileInputs then
  int64_t x_parts = 2;                 ///< of x_tiles: 1 or 2
  int64_t num_rows = 0;
  float* y = nullptr;  ///< (num_rows, num_outputs)
  Storage storage = Storage::kFloat32;
  Epilogue epilogue = Epilogue::kStore;
  Gate gate;
};

/// Attention of `num_queries` query heads that share one key-value head, at one position.
struct AttendArgs {
  const float* query = nullptr;  ///< (num_queries, head_dim), rotated, times head_dim^-0.5
  int64_t num_queries = 0;
  const std::byte* keys = nullptr;    ///< blocks of kKeyBlock positions
  const std::byte* values = nullptr;  ///< float32 [t][d'], bfloat16 [t / 2][d'][2]
  int64_t head_dim = 0;               ///< a multiple of 4
  int64_t value_stride = 0;           ///< d' = head_dim rounded up to 16
  int64_t first = 0, last = 0;        ///< positions that are attended to, both included
  float* weights = nullptr;           ///< scratch: num_queries * (last rounded up to 16, + 16)
  float* out = nullptr;               ///< (num_queries, head_dim)
  Storage storage = Storage::kFloat32;
};

/// Products of bfloat16 weights in tiles.
struct TileKernels {
  /// The row tiles [first, last) of x (num_rows, in_features).
  void (*pack)(const float* x, int64_t num_rows, int64_t in_features, int64_t num_parts,
               int64_t first, int64_t last, std::byte* to);
  /// Outputs of the blocks [first_block, last_block), of x_tiles.
  void (*linear)(const LinearArgs& args, int64_t first_block, int64_t last_block);
};

struct DecodeKernels {
  /// Outputs of the blocks [first_block, last_block).
  void (*linear)(const LinearArgs& args, int64_t first_block, int64_t last_block);
  void (*attend)(const AttendArgs& args);
  /// out = x * (mean(x^2) + epsilon)^-0.5 * weight.
  void (*rms_norm)(const float* x, const float* weight, float* out, int64_t size, float epsilon);
  /// Layer norm, out = (x - mean) / sqrt(variance + epsilon) * (1 + scale) + shift.
  void (*modulated_norm)(const float* x, const float* scale, const float* shift, float* out,
                         int64_t size, float epsilon);
  /// One head, stored as float32 or bfloat16; with `length` above 0 as a vector of that length.
  void (*store_head)(const float* x, std::byte* out, int64_t size, float length, Storage storage);
  /// out = (null + (conditional - null) * scale) * inverse_temperature; without null,
  /// conditional * inverse_temperature. Returns the largest value, NaN if there is one.
  float (*guide)(const float* conditional, const float* null, float* out, int64_t size, float scale,
                 float inverse_temperature);
  /// out = exp(x - maximum); out may be x.
  void (*exponentiate)(const float* x, float* out, int64_t size, float maximum);
  const TileKernels* tiles = nullptr;  ///< null where there are none
};

/// The set of a level. A level that the processor or the build lacks falls back to the next lower.
const DecodeKernels& decode_kernels(CpuIsa isa);

}  // namespace vgen::kernels
