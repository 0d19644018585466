#pragma once
// The processes of a run, or some of them, and what they do together: c10d's collectives (NCCL for
// tensors on CUDA, Gloo for those on the CPU) with errors that say which rank is at fault.
//
// Collectives are called by every rank of the group, in the same order, with tensors of the same
// shape and dtype, and by one thread at a time. A group whose collective failed is of no more use.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "vgen/dist/launch.h"

namespace c10d {
class ProcessGroup;
class Store;
class Work;
}  // namespace c10d

namespace vgen::dist {

class Group;
namespace detail {
class Pulse;
}

/// A collective under way. Its tensors belong to it until wait() has returned.
class Pending {
 public:
  Pending();
  Pending(Group* group, std::string what, c10::intrusive_ptr<c10d::Work> work,
          std::vector<at::Tensor> tensors);
  ~Pending();
  Pending(Pending&&) noexcept;
  Pending& operator=(Pending&&) noexcept;

  /// Until the result is there (on CUDA: until the current stream has it). Nothing for a second
  /// call. Throws Error(kUnavailable): what failed and which rank is at fault.
  void wait();
  bool is_done() const { return work_ == nullptr; }

 private:
  Group* group_ = nullptr;
  std::string what_;
  c10::intrusive_ptr<c10d::Work> work_;
  std::vector<at::Tensor> tensors_;
};

/// What a group has moved so far.
struct Traffic {
  int64_t bytes = 0;        ///< of the tensors that this rank gave
  double wait_seconds = 0;  ///< that this rank stood still for a collective
};

class Group {
 public:
  /// Meets the other ranks at launch.master_addr. `identity` is what has to be the same on all (the
  /// version, the config): a rank with another one is named. Throws Error(kUnavailable) with the
  /// ranks that did not arrive within the time, or (kInvalidArgument) with those that differ; where
  /// a rank declines, Error(kUnavailable) with that rank, its host and its reason. While the group
  /// lives, a store that does not answer for timeout_ms and 5 s ends the process: it logs why, and
  /// exits with 1.
  static std::unique_ptr<Group> join(const Launch& launch, const std::string& identity,
                                     int64_t timeout_ms, c10::DeviceType device);
  /// Of ranks that share a store: threads of one process, in tests.
  static std::unique_ptr<Group> join(c10::intrusive_ptr<c10d::Store> store, int64_t rank,
                                     int64_t size, int64_t timeout_ms,
                                     const std::string& identity = "",
                                     c10::DeviceType device = c10::kCPU);
  /// What a rank does instead of join() that has failed before: the join() of the others throws,
  /// with `reason`, instead of waiting for this rank until its time is over. Logs the reason, then
  /// tries for up to 10 s to tell it, and returns as soon as all have heard of it. Where rank 0
  /// keeps the store and declines, it keeps it for the others who come within 5 s; those who come
  /// later, or that this rank cannot reach, end by their own timeout. Of one process: does nothing.
  static void decline(const Launch& launch, const std::string& reason) noexcept;
  /// Of ranks that share a store, as in the second join(). Throws what c10d throws where it is
  /// gone.
  static void decline(const c10::intrusive_ptr<c10d::Store>& store, int64_t rank, int64_t size,
                      const std::string& reason);
  /// One process: every collective is the identity.
  static std::unique_ptr<Group> alone();
  ~Group();

  int64_t rank() const { return rank_; }
  int64_t size() const { return size_; }
  /// "rank 1 (node7)", for messages. Of a group of several.
  std::string rank_name(int64_t rank) const;

  /// The ranks of the same `color`, ordered as here. Collective over this group, which has to
  /// outlive the new one.
  std::unique_ptr<Group> split(int64_t color);

  void broadcast(const at::Tensor& tensor, int64_t root = 0);
  void all_reduce_sum(const at::Tensor& tensor);
  /// Of the processes, not of what their devices still have to do.
  void barrier();
  /// The text of every rank, in their order.
  std::vector<std::string> all_gather_text(const std::string& text);

  Pending start_all_reduce_sum(const at::Tensor& tensor);
  /// out: size() times the elements of `in`, rank after rank. Both contiguous, of one dtype; `in`
  /// may be this rank's part of `out`.
  Pending start_all_gather(const at::Tensor& out, const at::Tensor& in);
  /// out: this rank's part of the sum of every rank's `in`.
  Pending start_reduce_scatter_sum(const at::Tensor& out, const at::Tensor& in);

  const Traffic& traffic() const { return traffic_; }
  /// Adds what was moved beside the calls above.
  void add_traffic(const Traffic& more);

  /// Throws Error(kUnavailable): `what` failed because of `why`, and which rank is at fault: what
  /// ranks have reported; else those that are gone; else those that are alive and did not come.
  [[noreturn]] void fail(const std::string& what, const std::string& why);
  /// Tells the others why this rank ends, so that their errors name it. Never throws.
  void report_failure(const std::string& message) noexcept;
  /// After a failure: this group and the parts of it that live let go of their connections without
  /// waiting for what is still under way.
  void abandon() noexcept;

  /// For c10d's own reducer.
  const c10::intrusive_ptr<c10d::ProcessGroup>& process_group() const { return process_group_; }

 private:
  friend class Pending;
  Group(c10::intrusive_ptr<c10d::Store> store, int64_t rank, int64_t size);
  void connect(const std::string& name);
  void wait_for(const std::string& name, int64_t rank);
  Pending start(const std::string& what, const at::Tensor& given, std::vector<at::Tensor> tensors,
                const std::function<c10::intrusive_ptr<c10d::Work>()>& call);

  c10::intrusive_ptr<c10d::Store> store_;
  int64_t rank_ = 0;
  int64_t size_ = 1;
  int64_t timeout_ms_ = 0;
  int64_t num_splits_ = 0;
  int64_t num_texts_ = 0;
  c10::DeviceType device_;
  std::vector<std::string> hosts_;        ///< of each rank, for messages
  std::string address_, interface_;       ///< of this host, towards the others
  Group* world_ = nullptr;                ///< of a part: where it was split from
  std::vector<Group*> parts_;             ///< that were split from this one, and live
  std::unique_ptr<detail::Pulse> pulse_;  ///< of the world
  c10::intrusive_ptr<c10d::ProcessGroup> process_group_;
  Traffic traffic_;
};

/// What a rank does by itself before it joins the others: returns what `work` returns. Where that
/// throws, this rank declines, and the error goes on to the caller.
template <class Work>
auto before_joining(const Launch& launch, const Work& work) {
  try {
    return work();
  } catch (const std::exception& error) {
    Group::decline(launch, error.what());
    throw;
  }
}

}  // namespace vgen::dist
