#include "vgen/dist/group.h"

#include <torch/torch.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <thread>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "vgen/core/error.h"
#include "vgen/core/log.h"
#include "vgen/dist/detail/backends.h"
#include "vgen/dist/detail/meet.h"
#include "vgen/dist/detail/pulse.h"

namespace vgen::dist {

namespace {

using detail::StorePtr;
using detail::text_of;
using Clock = std::chrono::steady_clock;

// How long a rank that will not join tries to tell the others.
constexpr int64_t kDeclineTimeMs = 10'000;
// How long a rank whose collective failed waits to hear from the others.
constexpr int64_t kBlameTimeMs = 3000;
// A rank that waits for a text of another looks this often whether that one is still there, and
// calls it gone after so long without a sign: longer, as this ends the run.
constexpr std::chrono::milliseconds kLookEvery{2000};
constexpr int64_t kGoneTimeMs = 5000;
constexpr std::chrono::milliseconds kLongestPause{50};  // between two questions for the text
// A store that is silent may be so for longer than a collective may take: that one tells more.
constexpr int64_t kSilenceGraceMs = 5000;

std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

std::string key(const std::string& what, int64_t rank) { return str_cat(what, "/", rank); }

StorePtr open_store(const Launch& launch, int64_t timeout_ms) {
  c10d::TCPStoreOptions options;
  options.port = static_cast<uint16_t>(launch.master_port);
  options.isServer = launch.rank == 0 && !launch.is_store_hosted;
  options.waitWorkers = false;
  options.timeout = std::chrono::milliseconds(timeout_ms);
  try {
    StorePtr store = c10::make_intrusive<c10d::TCPStore>(launch.master_addr, options);
    return c10::make_intrusive<c10d::PrefixStore>("vgen", store);
  } catch (const std::exception& error) {
    const char* advice = options.isServer ? "; is the port in use? set another MASTER_PORT"
                                          : "; did rank 0 start, and is that its address?";
    throw_error(ErrorCode::kUnavailable, "rank ", launch.rank, " of ", launch.world_size,
                " cannot meet the others at ", launch.master_addr, ":", launch.master_port, ": ",
                first_line(error.what()), advice);
  }
}

detail::Meeting meet(const StorePtr& store, int64_t rank, int64_t size, const std::string& identity,
                     int64_t timeout_ms) {
  try {
    return detail::meet(store, rank, size, identity, timeout_ms);
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    throw_error(ErrorCode::kUnavailable, "rank ", rank, " of ", size,
                " lost the store while it waited for the others (", first_line(error.what()),
                "); rank 0 or the launcher has ended: look at its output");
  }
}

// A rank that is cut off from the store, at `place`, would wait for it wherever it asks it
// something, also who is at fault: the process ends.
std::unique_ptr<detail::Pulse> start_pulse(c10d::Store& store, int64_t rank, int64_t size,
                                           int64_t timeout_ms, const std::string& place) {
  const int64_t limit_ms = timeout_ms + kSilenceGraceMs;
  const std::string text = str_cat(
      "rank ", rank, " of ", size, ": no answer in ", limit_ms / 1000,
      " s from the store of the ranks at ", place,
      ": the network is cut, or that process is stuck; this rank ends, start the run again");
  return std::make_unique<detail::Pulse>(store, rank, limit_ms, [text] {
    log_error(text);
    std::_Exit(1);
  });
}

}  // namespace

Pending::Pending() = default;
Pending::Pending(Group* group, std::string what, c10::intrusive_ptr<c10d::Work> work,
                 std::vector<at::Tensor> tensors)
    : group_(group), what_(std::move(what)), work_(std::move(work)), tensors_(std::move(tensors)) {}
Pending::~Pending() = default;
Pending::Pending(Pending&&) noexcept = default;
Pending& Pending::operator=(Pending&&) noexcept = default;

void Pending::wait() {
  if (!work_) return;
  const auto begin = Clock::now();
  const auto work = std::move(work_);
  work_.reset();
  try {
    work->wait();
  } catch (const std::exception& error) {
    group_->fail(what_, error.what());
  }
  tensors_.clear();
  group_->traffic_.wait_seconds += std::chrono::duration<double>(Clock::now() - begin).count();
}

Group::Group(StorePtr store, int64_t rank, int64_t size)
    : store_(std::move(store)), rank_(rank), size_(size), device_(c10::kCPU) {}
Group::~Group() {
  if (world_ != nullptr) std::erase(world_->parts_, this);
}

std::unique_ptr<Group> Group::alone() { return std::unique_ptr<Group>(new Group({}, 0, 1)); }

std::unique_ptr<Group> Group::join(const Launch& launch, const std::string& identity,
                                   int64_t timeout_ms, c10::DeviceType device) {
  if (launch.world_size == 1) return alone();
  before_joining(launch, [&] { require_meeting_point(launch); });
  const int64_t rank = launch.rank, size = launch.world_size;
  const StorePtr store = open_store(launch, timeout_ms);
  auto meeting = meet(store, rank, size, identity, timeout_ms);
  std::unique_ptr<Group> group(new Group(std::move(meeting.store), rank, size));
  group->hosts_ = std::move(meeting.hosts);
  group->address_ = detail::address_towards(launch.master_addr);
  group->interface_ = launch.interface;
  group->timeout_ms_ = timeout_ms;
  group->device_ = device;
  group->pulse_ = start_pulse(*group->store_, rank, size, timeout_ms,
                              str_cat(launch.master_addr, ":", launch.master_port));
  group->connect("world");
  return group;
}

std::unique_ptr<Group> Group::join(StorePtr store, int64_t rank, int64_t size, int64_t timeout_ms,
                                   const std::string& identity, c10::DeviceType device) {
  if (size == 1) return alone();
  auto meeting = meet(store, rank, size, identity, timeout_ms);
  std::unique_ptr<Group> group(new Group(std::move(meeting.store), rank, size));
  group->hosts_ = std::move(meeting.hosts);
  group->address_ = "127.0.0.1";
  group->device_ = device;
  group->timeout_ms_ = timeout_ms;
  group->pulse_ = start_pulse(*group->store_, rank, size, timeout_ms, "this process");
  group->connect("world");
  return group;
}

void Group::decline(const Launch& launch, const std::string& reason) noexcept {
  if (launch.world_size == 1) return;
  try {
    log_error(reason);  // now: a launcher may end this process while it waits
    if (launch.master_addr.empty()) return;
    const auto begin = Clock::now();
    const StorePtr store = open_store(launch, kDeclineTimeMs);
    const auto spent = std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - begin);
    detail::decline(store, launch.rank, launch.world_size, first_line(reason),
                    kDeclineTimeMs - spent.count());
  } catch (const std::exception&) {
    // They cannot be reached: they will miss this rank.
  }
}

void Group::decline(const StorePtr& store, int64_t rank, int64_t size, const std::string& reason) {
  detail::decline(store, rank, size, first_line(reason), kDeclineTimeMs);
}

void Group::connect(const std::string& name) {
  using c10d::ProcessGroup;
  const auto rank = static_cast<int>(rank_), size = static_cast<int>(size_);
  const StorePtr store = c10::make_intrusive<c10d::PrefixStore>("connect", store_);
  const detail::BackendPlace place{store, rank_, size_, timeout_ms_, address_, interface_};
  try {
    auto group = c10::make_intrusive<ProcessGroup>(store, rank, size);
    const bool is_cuda = device_ == c10::kCUDA;
    group->setDefaultBackend(is_cuda ? ProcessGroup::NCCL : ProcessGroup::GLOO);
    group->setBackend(c10::kCPU, ProcessGroup::GLOO, detail::make_gloo(place));
    if (is_cuda) group->setBackend(c10::kCUDA, ProcessGroup::NCCL, detail::make_nccl(place));
    group->setGroupName(name);
    process_group_ = std::move(group);
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    fail("connecting the ranks", error.what());
  }
}

std::unique_ptr<Group> Group::split(int64_t color) {
  const int64_t number = num_splits_++;
  std::vector<int64_t> members;
  const auto colors = all_gather_text(str_cat(color));
  for (int64_t rank = 0; rank < size_; ++rank) {
    if (colors[static_cast<size_t>(rank)] == str_cat(color)) members.push_back(rank);
  }
  if (members.size() == 1) return alone();
  const auto own = std::ranges::find(members, rank_) - members.begin();
  const std::string prefix = str_cat("split/", number, "/", color);
  std::unique_ptr<Group> part(new Group(c10::make_intrusive<c10d::PrefixStore>(prefix, store_), own,
                                        static_cast<int64_t>(members.size())));
  for (const int64_t member : members) {
    part->hosts_.push_back(hosts_[static_cast<size_t>(member)]);
  }
  part->address_ = address_;
  part->interface_ = interface_;
  part->timeout_ms_ = timeout_ms_;
  part->device_ = device_;
  part->world_ = this;
  parts_.push_back(part.get());
  part->connect(prefix);
  return part;
}

Pending Group::start(const std::string& what, const at::Tensor& given,
                     std::vector<at::Tensor> tensors,
                     const std::function<c10::intrusive_ptr<c10d::Work>()>& call) {
  traffic_.bytes += static_cast<int64_t>(given.nbytes());
  const std::string text =
      str_cat(what, " of ", given.numel(), " ", c10::toString(given.scalar_type()));
  try {
    return {this, text, call(), std::move(tensors)};
  } catch (const std::exception& error) {
    fail(text, error.what());
  }
}

void Group::add_traffic(const Traffic& more) {
  traffic_.bytes += more.bytes;
  traffic_.wait_seconds += more.wait_seconds;
}

Pending Group::start_all_reduce_sum(const at::Tensor& tensor) {
  if (size_ == 1) return {};
  std::vector<at::Tensor> tensors{tensor};
  return start("sum over the ranks", tensor, tensors,
               [&] { return process_group_->allreduce(tensors); });
}

Pending Group::start_all_gather(const at::Tensor& out, const at::Tensor& in) {
  TORCH_INTERNAL_ASSERT(out.numel() == size_ * in.numel() && out.dtype() == in.dtype());
  if (size_ == 1) {
    if (out.data_ptr() != in.data_ptr()) out.view(-1).copy_(in.view(-1));
    return {};
  }
  at::Tensor whole = out.view(-1), part = in.view(-1);  // Gloo compares the shapes
  return start("gathering", in, {out, in},
               [&] { return process_group_->_allgather_base(whole, part); });
}

Pending Group::start_reduce_scatter_sum(const at::Tensor& out, const at::Tensor& in) {
  TORCH_INTERNAL_ASSERT(in.numel() == size_ * out.numel() && out.dtype() == in.dtype());
  if (size_ == 1) {
    if (out.data_ptr() != in.data_ptr()) out.view(-1).copy_(in.view(-1));
    return {};
  }
  at::Tensor part = out.view(-1), whole = in.view(-1);
  return start("sum and scatter", in, {out, in},
               [&] { return process_group_->_reduce_scatter_base(part, whole); });
}

void Group::broadcast(const at::Tensor& tensor, int64_t root) {
  if (size_ == 1) return;
  std::vector<at::Tensor> tensors{tensor};
  c10d::BroadcastOptions options;
  options.rootRank = root;
  start(str_cat("broadcast from rank ", root), tensor, tensors, [&] {
    return process_group_->broadcast(tensors, options);
  }).wait();
}

void Group::all_reduce_sum(const at::Tensor& tensor) { start_all_reduce_sum(tensor).wait(); }

void Group::barrier() { all_reduce_sum(at::zeros({1})); }

std::vector<std::string> Group::all_gather_text(const std::string& text) {
  if (size_ == 1) return {text};
  const std::string what = str_cat("text", num_texts_++);
  std::vector<std::string> texts;
  try {
    store_->set(key(what, rank_), text);
    for (int64_t rank = 0; rank < size_; ++rank) {
      const std::string name = key(what, rank);
      wait_for(name, rank);
      texts.push_back(text_of(*store_, name));
    }
  } catch (const std::exception& error) {
    fail("exchange of text", error.what());
  }
  return texts;
}

// Not by the store's own wait, which does not notice that the rank has ended. The pulses are the
// world's.
void Group::wait_for(const std::string& name, int64_t rank) {
  const auto begin = Clock::now();
  auto next_look = begin + kLookEvery;
  std::chrono::milliseconds pause{1};
  while (!store_->check({name})) {
    require(Clock::now() - begin < std::chrono::milliseconds(timeout_ms_), ErrorCode::kUnavailable,
            "nothing from rank ", rank, " in ", timeout_ms_ / 1000,
            " s; raise parallel.timeout_s if it was only slow");
    if (world_ == nullptr && Clock::now() >= next_look) {
      require(!store_->check({key("error", rank)}), ErrorCode::kUnavailable, "rank ", rank,
              " has failed");
      require(detail::without_pulse(*store_, {rank}, kGoneTimeMs).empty(), ErrorCode::kUnavailable,
              "rank ", rank, " is gone");
      next_look = Clock::now() + kLookEvery;
    }
    std::this_thread::sleep_for(pause);
    pause = std::min(2 * pause, kLongestPause);
  }
}

std::string Group::rank_name(int64_t rank) const {
  return str_cat("rank ", rank, " (", hosts_.at(static_cast<size_t>(rank)), ")");
}

void Group::fail(const std::string& what, const std::string& why) {
  if (world_ != nullptr) world_->fail(what, why);
  std::string reasons;
  try {
    store_->set(key("failed", rank_), "");
    std::vector<int64_t> others;
    for (int64_t rank = 0; rank < size_; ++rank) {
      if (rank != rank_) others.push_back(rank);
    }
    const auto gone = detail::without_pulse(*store_, others, kBlameTimeMs);
    for (int64_t rank = 0; rank < size_; ++rank) {
      if (!store_->check({key("error", rank)})) continue;
      reasons += str_cat("; ", rank_name(rank), ": ", text_of(*store_, key("error", rank)));
    }
    // Where a reason is known, those who are gone may just have ended because of it.
    if (reasons.empty()) {
      for (const int64_t rank : gone) reasons += str_cat("; no word from ", rank_name(rank));
    }
    if (reasons.empty()) {
      for (const int64_t rank : detail::missing_after(*store_, "failed", size_, kBlameTimeMs)) {
        reasons += str_cat("; ", rank_name(rank),
                           " is alive, but did not come: it is stuck, or slower "
                           "than parallel.timeout_s allows");
      }
    }
  } catch (const std::exception&) {
    reasons += "; the store of the ranks is gone: rank 0 or the launcher has ended";
  }
  throw_error(ErrorCode::kUnavailable, "rank ", rank_, " of ", size_, ": ", what, " failed (",
              first_line(why), ")", reasons);
}

void Group::report_failure(const std::string& message) noexcept {
  if (!store_) return;
  try {
    store_->set(key("error", rank_), first_line(message));
    store_->set(key("failed", rank_), "");
  } catch (const std::exception&) {
    // The others will find this rank silent.
  }
}

void Group::abandon() noexcept {
  for (Group* part : parts_) part->abandon();
  // Its destructor would wait for what is under way.
  if (process_group_) (void)process_group_.release();
  if (pulse_) pulse_->abandon();
}

}  // namespace vgen::dist
