#pragma once
// The parameters of a block as one row of numbers, of which each rank keeps an equal part.
//
// Each parameter is contiguous in the row, in its logical order, and begins at a multiple of kAlign
// elements, as do the ranks' parts; what lies between is zero. The parameters of the module become
// views of a row in the dtype of computation. Its memory is taken for a gather and given back
// after; the parameters stay the same tensors, and writes to the row do not count as changes of
// them, so that a graph made before may be differentiated after. Every method that starts a
// collective is called by all ranks in the same order.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "vgen/dist/detail/stream_waits.h"
#include "vgen/dist/group.h"
#include "vgen/dist/strategy.h"

namespace vgen::dist::detail {

inline constexpr int64_t kAlign = 16;

/// Elements from the beginning of a parameter of that size to where the next one may begin.
inline int64_t aligned(int64_t size) { return (size + kAlign - 1) / kAlign * kAlign; }
/// Elements of each rank's part of a row of `size`.
inline int64_t part_size(int64_t size, int64_t ranks) {
  return aligned((size + ranks - 1) / ranks);
}

/// How rows are spread over the ranks.
struct Spread {
  Group* world = nullptr;
  Group* copy = nullptr;         ///< the ranks that have one copy of the model together
  Group* peers = nullptr;        ///< the ranks that have the same part of it
  StreamWaits* waits = nullptr;  ///< gets the times of waits, unless it is null
  bool is_resident = false;      ///< the whole row stays on every rank, float32 (zero1)
  c10::ScalarType param_dtype = c10::kFloat;
  c10::ScalarType reduce_dtype = c10::kFloat;
};

/// Bytes of whole rows that are there for a while.
struct RowBytes {
  int64_t now = 0;
  int64_t peak = 0;
  void add(int64_t bytes);
};

class Unit;

/// A sum of a unit's gradients that is under way.
struct Reduction {
  Unit* unit = nullptr;
  bool is_last = true;  ///< of the step's last micro-batch
  at::Tensor given = {}, sum = {};
  Pending pending = {};
};

class Unit {
 public:
  /// Rank 0's values become those of all: collective over the world. `spread` and `row_bytes`
  /// outlive this; the parameters are float32, maybe deferred, and on one device.
  Unit(const Spread& spread, RowBytes& row_bytes, const std::vector<std::string>& names,
       std::vector<at::Tensor> parameters);

  const std::vector<at::Tensor>& parameters() const { return parameters_; }
  /// This rank's part of each parameter, maybe of no elements.
  const std::vector<ParameterPart>& parts() const { return parts_; }

  // --- weights ---

  /// Takes memory and starts the gather, unless that is done.
  void start_gather();
  /// Until a gather that was started has ended.
  void wait() { timed_wait(gather_, spread_.waits); }
  bool is_gathered() const { return is_gathered_; }  ///< or about to be
  /// Gives the memory back, unless the unit is pinned or resident.
  void free();
  /// Pinned (any number of times), the unit is not freed.
  void pin() { ++pins_; }
  void unpin();
  /// The part becomes what the gathered row, which is float32, has there now.
  void take_over();
  /// After an update of the parts: what was gathered is old, what was derived of it as well.
  void mark_changed();

  // --- gradients of the parts, which add up until drop_gradients() ---

  bool has_gradients() const;  ///< in the parameters, not yet taken over
  /// Takes the gradients out of the parameters and starts their sum over the ranks of a copy. A
  /// parameter without one counts as zero.
  Reduction start_scatter(bool is_last);
  /// Waits for it and keeps this rank's part, as the mean over the world.
  void finish_scatter(Reduction reduction);
  /// Starts the sum of what was kept over the peers.
  Reduction start_sum_over_peers();
  /// Waits for it and adds it to the gradient.
  void finish_sum_over_peers(Reduction reduction);

  /// Which parameters had a gradient since drop_gradients(), 0 or 1 each.
  const std::vector<int32_t>& is_used() const { return is_used_; }
  /// The gradient becomes that of the parts, where is_used[i] is not 0; the others have none.
  void publish_gradients(const int32_t* is_used);
  void drop_gradients();
  /// Of this rank's part of the row, float32; undefined: there is none.
  const at::Tensor& gradient() const { return gradient_; }

  int64_t weight_bytes() const;    ///< kept between gathers
  int64_t gradient_bytes() const;  ///< of this rank's part

 private:
  at::Tensor own(const at::Tensor& row) const;
  at::Tensor slice(const at::Tensor& row, size_t i) const;
  void lay_out();
  void make_parts(const std::vector<std::string>& names);
  at::Tensor row_without_memory(const at::Tensor& like) const;
  void take_memory();
  void give_memory_back();

  const Spread& spread_;
  RowBytes& row_bytes_;
  std::vector<at::Tensor> parameters_;
  std::vector<int64_t> offsets_;  // of each parameter in the row
  int64_t part_size_ = 0;         // elements of a rank's part
  at::Tensor row_;                // param_dtype; without memory while it is not gathered
  at::Tensor weights_;            // float32: this rank's part
  std::vector<ParameterPart> parts_;
  std::vector<int64_t> part_offsets_;  // of each part in weights_
  bool is_gathered_ = false;           // or about to be
  int64_t pins_ = 0;
  Pending gather_;
  at::Tensor kept_;      // float32: gradients not yet summed over the peers
  at::Tensor gradient_;  // float32
  std::vector<int32_t> is_used_;
};

}  // namespace vgen::dist::detail
