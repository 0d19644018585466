// Stores that do not answer, and those that are only slow, or gone.

#include "vgen/dist/detail/pulse.h"

#include <atomic>
#include <catch2/catch.hpp>
#include <chrono>
#include <future>
#include <stdexcept>
#include <thread>
#include <torch/csrc/distributed/c10d/HashStore.hpp>

namespace vgen {
namespace {

using dist::detail::Pulse;
using namespace std::chrono_literals;

/// A store that does what the test says before it counts up a key.
class ToyStore : public c10d::HashStore {
 public:
  explicit ToyStore(std::function<void()> before_add) : before_add_(std::move(before_add)) {}

  int64_t add(const std::string& key, int64_t value) override {
    before_add_();
    ++answers;
    return HashStore::add(key, value);
  }
  c10::intrusive_ptr<Store> clone() override {
    return c10::intrusive_ptr<Store>::reclaim_copy(this);
  }

  std::atomic<int64_t> answers = 0;

 private:
  std::function<void()> before_add_;
};

TEST_CASE("pulse: a store that does not answer is noticed", "[dist]") {
  std::promise<void> cable;
  const std::shared_future<void> repaired = cable.get_future().share();
  const auto store = c10::make_intrusive<ToyStore>([repaired] { repaired.wait(); });
  std::promise<void> noticed;
  {
    Pulse pulse(*store, 0, /*limit_ms=*/1000, [&] { noticed.set_value(); });
    CHECK(noticed.get_future().wait_for(20s) == std::future_status::ready);
    cable.set_value();
  }
  CHECK(store->answers <= 1);
}

TEST_CASE("pulse: a slow store is none that does not answer", "[dist]") {
  std::atomic<bool> is_noticed = false;
  const auto store = c10::make_intrusive<ToyStore>([] { std::this_thread::sleep_for(200ms); });
  {
    Pulse pulse(*store, 0, /*limit_ms=*/2500, [&] { is_noticed = true; });
    while (store->answers < 6 && !is_noticed) std::this_thread::sleep_for(10ms);  // 4 s
  }
  CHECK_FALSE(is_noticed);
}

TEST_CASE("pulse: a store that is gone ends it, and nothing else", "[dist]") {
  std::atomic<bool> is_noticed = false;
  const auto store =
      c10::make_intrusive<ToyStore>([] { throw std::runtime_error("connection reset"); });
  {
    Pulse pulse(*store, 0, /*limit_ms=*/1000, [&] { is_noticed = true; });
  }
  CHECK_FALSE(is_noticed);
}

}  // namespace
}  // namespace vgen
