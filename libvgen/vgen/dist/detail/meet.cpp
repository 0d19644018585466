#include "vgen/dist/detail/meet.h"

#include <torch/torch.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <random>
#include <set>
#include <sstream>
#include <thread>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>

#include "vgen/core/error.h"

namespace vgen::dist::detail {

namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::milliseconds kPoll{20};
constexpr std::chrono::milliseconds kFarewell{3000};
// Once a rank has failed, those that are still to come have so long to hear of it.
constexpr std::chrono::milliseconds kLastCall{5000};
// Rank 0 is the one that says who is missing: it is waited for a little longer.
constexpr int64_t kGraceMs = 5000;

// A name for this process that no other has had.
std::string new_name() {
  std::random_device device;
  const uint64_t high = device(), low = device();
  return str_cat(::getpid(), "-", high << 32 | low);
}

std::string host_name() {
  char name[256] = "";
  ::gethostname(name, sizeof(name) - 1);
  return str_cat(name, " process ", ::getpid());
}

// What a rank comes with.
struct Arrival {
  int64_t rank = 0;
  std::string identity = {};
  std::string failure = {};       // why it will not join; empty: it will
  std::string name = new_name();  // of this process
};

// The ranks that have not come, and those of the others that will not join.
struct RollCall {
  std::vector<int64_t> missing, failed;
};

// The first line that differs: "'lr: 0.1', expected 'lr: 0.2'".
std::string difference(const std::string& found, const std::string& expected) {
  std::istringstream ours(found), theirs(expected);
  std::string a, b;
  while (true) {
    const bool has_a = static_cast<bool>(std::getline(ours, a));
    const bool has_b = static_cast<bool>(std::getline(theirs, b));
    if (a != b || has_a != has_b || !has_a) {
      return str_cat("'", printable(a), "', expected '", printable(b), "'");
    }
  }
}

// What does not fit between the ranks; empty: nothing.
std::string complaint(c10d::Store& store, const std::string& round, int64_t size,
                      const RollCall& call, int64_t timeout_ms) {
  const auto key = [&](const char* what, int64_t rank) { return str_cat(round, what, rank); };
  if (!call.failed.empty()) {
    const int64_t rank = call.failed.front();
    return str_cat("failed:rank ", rank, " (", text_of(store, key("host/", rank)),
                   ") failed before the ranks had met: ", text_of(store, key("failure/", rank)));
  }
  if (!call.missing.empty()) {
    return str_cat("missing:", list_ranks(call.missing, size), " did not arrive within ",
                   timeout_ms / 1000, " s; look at their output, or raise parallel.timeout_s");
  }
  const std::string first = text_of(store, key("identity/", 0));
  for (int64_t rank = 1; rank < size; ++rank) {
    const std::string theirs = text_of(store, key("identity/", rank));
    if (theirs == first) continue;
    return str_cat("differs:rank ", rank, " (", text_of(store, key("host/", rank)),
                   ") is started with ", difference(theirs, first),
                   " as rank 0 has it; start all ranks with one version and one config");
  }
  return "";
}

// An answer that is none has the names of processes, without a colon.
bool is_complaint(const std::string& answer) { return answer.find(':') != std::string::npos; }

// Every kind of complaint as an error.
[[noreturn]] void throw_complaint(const std::string& text) {
  const size_t colon = text.find(':');
  throw_error(text.starts_with("differs:") ? ErrorCode::kInvalidArgument : ErrorCode::kUnavailable,
              text.substr(colon + 1));
}

void arrive(c10d::Store& store, const std::string& round, const Arrival& own) {
  store.set(str_cat(round, "host/", own.rank), host_name());
  store.set(str_cat(round, "identity/", own.rank), own.identity);
  if (!own.failure.empty()) store.set(str_cat(round, "failure/", own.rank), own.failure);
  store.set(str_cat(round, "name/", own.rank), own.name);
}

RollCall call_roll(c10d::Store& store, const std::string& round, int64_t size, int64_t timeout_ms) {
  RollCall call;
  for (int64_t rank = 0; rank < size; ++rank) call.missing.push_back(rank);
  auto end = Clock::now() + std::chrono::milliseconds(timeout_ms);
  while (true) {
    std::erase_if(call.missing, [&](int64_t rank) {
      if (!store.check({str_cat(round, "name/", rank)})) return false;
      if (store.check({str_cat(round, "failure/", rank)})) {
        call.failed.push_back(rank);
        end = std::min(end, Clock::now() + kLastCall);
      }
      return true;
    });
    if (call.missing.empty() || Clock::now() >= end) return call;
    std::this_thread::sleep_for(kPoll);
  }
}

// Rank 0 opens a round under a name of its own, so that nothing of an earlier one counts.
std::string lead(c10d::Store& store, const Arrival& own, int64_t size, int64_t timeout_ms) {
  const std::string round = own.name + "/";
  arrive(store, round, own);
  store.set("round", own.name);
  const RollCall call = call_roll(store, round, size, timeout_ms);
  const std::string problem = complaint(store, round, size, call, timeout_ms);
  std::string members;
  if (problem.empty()) {
    for (int64_t rank = 0; rank < size; ++rank) {
      members += text_of(store, str_cat(round, "name/", rank)) + "\n";
    }
  }
  store.set(round + "answer", problem.empty() ? members : problem);
  if (problem.empty()) return round;
  // The others read it before this process, and with it the store, may be gone.
  const std::set<int64_t> absent(call.missing.begin(), call.missing.end());
  const auto end = Clock::now() + kFarewell;
  for (int64_t rank = 1; rank < size; ++rank) {
    while (!absent.contains(rank) && Clock::now() < end &&
           !store.check({str_cat(round, "heard/", rank)})) {
      std::this_thread::sleep_for(kPoll);
    }
  }
  throw_complaint(problem);
}

// The others join the newest round until one answers with their name in it.
std::string follow(c10d::Store& store, const Arrival& own, int64_t size, int64_t timeout_ms) {
  const int64_t grace_ms = own.failure.empty() ? kGraceMs : 0;
  const auto end = Clock::now() + std::chrono::milliseconds(timeout_ms + grace_ms);
  std::string joined;
  while (Clock::now() < end) {
    if (store.check({"round"})) {
      const std::string round = text_of(store, "round") + "/";
      const bool is_answered = store.check({round + "answer"});
      if (round != joined && !is_answered) {
        arrive(store, round, own);
        joined = round;
      } else if (round == joined && is_answered) {
        const std::string answer = text_of(store, round + "answer");
        store.set(str_cat(round, "heard/", own.rank), "");
        if (is_complaint(answer)) throw_complaint(answer);
        if (answer.find(own.name + "\n") != std::string::npos) return round;
      }
      // What was answered before this rank came is an earlier round: the next will follow.
    }
    std::this_thread::sleep_for(kPoll);
  }
  throw_error(ErrorCode::kUnavailable, "rank ", own.rank, ": rank 0 of ", size,
              " did not arrive within ", timeout_ms / 1000,
              " s; look at its output, or raise parallel.timeout_s");
}

}  // namespace

std::string text_of(c10d::Store& store, const std::string& key) {
  const std::vector<uint8_t> bytes = store.get(key);
  return {bytes.begin(), bytes.end()};
}

std::string list_ranks(const std::vector<int64_t>& ranks, int64_t size) {
  constexpr size_t kShown = 8;
  std::string text;
  for (size_t i = 0; i < std::min(kShown, ranks.size()); ++i) {
    text += str_cat(i > 0 ? ", " : "", ranks[i]);
  }
  if (ranks.size() > kShown) text += str_cat(" and ", ranks.size() - kShown, " more");
  return str_cat(ranks.size() == 1 ? "rank " : "ranks ", text, " of ", size);
}

std::vector<int64_t> missing_after(c10d::Store& store, const std::string& what, int64_t size,
                                   int64_t time_ms) {
  std::vector<int64_t> missing;
  for (int64_t rank = 0; rank < size; ++rank) missing.push_back(rank);
  const auto end = Clock::now() + std::chrono::milliseconds(time_ms);
  while (true) {
    std::erase_if(missing, [&](int64_t rank) { return store.check({str_cat(what, "/", rank)}); });
    if (missing.empty() || Clock::now() >= end) return missing;
    std::this_thread::sleep_for(kPoll);
  }
}

Meeting meet(const StorePtr& store, int64_t rank, int64_t size, const std::string& identity,
             int64_t timeout_ms) {
  const Arrival own{.rank = rank, .identity = identity};
  const std::string round =
      rank == 0 ? lead(*store, own, size, timeout_ms) : follow(*store, own, size, timeout_ms);
  Meeting meeting{c10::make_intrusive<c10d::PrefixStore>(round, store), {}};
  for (int64_t other = 0; other < size; ++other) {
    meeting.hosts.push_back(text_of(*store, str_cat(round, "host/", other)));
  }
  return meeting;
}

void decline(const StorePtr& store, int64_t rank, int64_t size, const std::string& reason,
             int64_t time_ms) {
  const Arrival own{.rank = rank, .failure = reason};
  try {
    rank == 0 ? lead(*store, own, size, time_ms) : follow(*store, own, size, time_ms);
  } catch (const Error&) {
    // The answer to its own reason, or nobody came who could have heard of it.
  }
}

}  // namespace vgen::dist::detail
