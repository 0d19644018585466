#include "vgen/dist/strategy.h"

#include <torch/csrc/autograd/engine.h>
#include <torch/torch.h>

#include <algorithm>
#include <chrono>
#include <new>
#include <torch/csrc/distributed/c10d/reducer.hpp>

#include "vgen/core/error.h"
#include "vgen/dist/activation_checkpoint.h"
#include "vgen/dist/detail/stream_waits.h"
#include "vgen/dist/sharded.h"

namespace vgen::dist {

namespace {

// Every rank has every parameter whole, and averages of the gradients in them after backward().
class Replicated : public Strategy {
 public:
  Replicated(const ParallelConfig& config, std::unique_ptr<Group> group)
      : Strategy(std::move(group)), is_checkpointed_(config.activation_checkpointing) {}

  void attach(const std::vector<PhaseModel>& phases,
              const std::vector<at::Tensor>& buffers) override {
    const at::NoGradGuard no_grad;
    time_waits(phases);
    phases_ = phases;
    for (const PhaseModel& phase : phases) {
      for (const at::Tensor& parameter : phase.parameters) group().broadcast(parameter.detach());
    }
    for (const at::Tensor& buffer : buffers) group().broadcast(buffer);
  }

  std::vector<ParameterPart> parts(size_t phase) override {
    std::vector<ParameterPart> parts;
    const PhaseModel& model = phases_[phase];
    for (size_t i = 0; i < model.parameters.size(); ++i) {
      parts.push_back({.name = model.names[i],
                       .sizes = model.parameters[i].sizes().vec(),
                       .values = model.parameters[i]});
    }
    return parts;
  }

  BlockRunner* runner() override { return is_checkpointed_ ? &checkpoints_ : nullptr; }

  void backward(size_t /*phase*/, const at::Tensor& loss, bool /*sync_gradients*/) override {
    loss.backward();
  }

  at::Tensor clip_grad_norm(size_t phase, double max_norm) override {
    const at::NoGradGuard no_grad;
    std::vector<at::Tensor> gradients;
    for (const at::Tensor& parameter : phases_[phase].parameters) {
      if (parameter.grad().defined()) gradients.push_back(parameter.grad());
    }
    if (gradients.empty()) return at::zeros({});
    const auto norm = at::linalg_vector_norm(at::stack(at::_foreach_norm(gradients)), 2);
    if (max_norm > 0) {
      at::_foreach_mul_(gradients, at::clamp_max(max_norm / (norm + 1e-6), 1.0));
    }
    return norm;
  }

  void updated(size_t /*phase*/) override {}

 protected:
  std::vector<PhaseModel> phases_;

 private:
  bool is_checkpointed_;
  CheckpointRunner checkpoints_;
};

/// The gradients of each phase are averaged by a reducer, bucket by bucket, while the backward pass
/// goes on.
class DataParallel : public Replicated {
 public:
  DataParallel(const ParallelConfig& config, std::unique_ptr<Group> group)
      : Replicated(config, std::move(group)),
        bucket_bytes_(static_cast<size_t>(config.bucket_mb * 1024 * 1024)) {}

  void attach(const std::vector<PhaseModel>& phases,
              const std::vector<at::Tensor>& buffers) override {
    Replicated::attach(phases, buffers);
    reducers_.resize(phases.size());
  }

  void backward(size_t phase, const at::Tensor& loss, bool sync_gradients) override {
    NoWarnings none;  // the reducer has one for steps in which every parameter has a gradient
    const c10::WarningUtils::WarningHandlerGuard guard(&none);
    try {
      // A parameter may be without a gradient in some steps (a discriminator that has not begun):
      // found in the graph of the loss.
      if (sync_gradients) {
        reducer(phase).prepare_for_backward({loss});
        begin_wait_after(loss);
      }
      loss.backward();
      if (sync_gradients) end_wait(phase);
    } catch (const c10::DistError& error) {
      group().fail("averaging gradients", error.what());
    } catch (const c10::Error&) {
      throw;  // not of the ranks, nor are the next two
    } catch (const Error&) {
      throw;
    } catch (const std::bad_alloc&) {
      throw;
    } catch (const std::exception& error) {
      group().fail("averaging gradients", error.what());
    }
  }

 private:
  using Clock = std::chrono::steady_clock;

  struct NoWarnings : c10::WarningHandler {
    void process(const c10::Warning& /*warning*/) override {}
  };

  // The reducer sums what is ready while the pass goes on, and waits for the sums in a callback at
  // its end. The engine calls those in the order in which they were queued: one that is queued by
  // the first node of the pass comes before.
  void begin_wait_after(const at::Tensor& loss) {
    loss.register_hook([this](const at::Tensor& /*gradient*/) {
      torch::autograd::Engine::get_default_engine().queue_callback([this] {
        wait_begin_ = Clock::now();
        if (stream_waits() != nullptr) stream_waits()->begin();
      });
    });
  }

  void end_wait(size_t phase) {
    if (stream_waits() != nullptr) stream_waits()->end();
    const std::chrono::duration<double> host_wait = Clock::now() - wait_begin_;
    Traffic traffic{.wait_seconds = host_wait.count()};
    for (const at::Tensor& parameter : phases_[phase].parameters) {
      traffic.bytes += static_cast<int64_t>(parameter.nbytes());
    }
    group().add_traffic(traffic);
  }

  // Made when the phase is first differentiated: only then do its parameters want gradients.
  c10d::Reducer& reducer(size_t phase) {
    if (reducers_[phase]) return *reducers_[phase];
    const std::vector<at::Tensor>& parameters = phases_[phase].parameters;
    // The first gradients that are ready are those of the last parameters.
    auto buckets =
        std::get<0>(c10d::compute_bucket_assignment_by_size(parameters, {bucket_bytes_}));
    std::ranges::reverse(buckets);
    reducers_[phase] = std::make_unique<c10d::Reducer>(
        parameters, std::move(buckets), group().process_group(),
        /*expect_sparse_gradients=*/std::vector<bool>(parameters.size(), false),
        static_cast<int64_t>(bucket_bytes_), /*find_unused_parameters=*/true,
        /*gradient_as_bucket_view=*/false,
        /*param_names=*/std::unordered_map<size_t, std::string>(),
        static_cast<int64_t>(bucket_bytes_), /*skip_all_reduce_unused_params=*/false,
        /*use_python_reducer=*/false, /*bucket_bytes_cap_list=*/std::vector<int64_t>());
    return *reducers_[phase];
  }

  size_t bucket_bytes_;
  std::vector<std::unique_ptr<c10d::Reducer>> reducers_;
  Clock::time_point wait_begin_;
};

}  // namespace

Strategy::Strategy(std::unique_ptr<Group> group) : group_(std::move(group)) {}
Strategy::~Strategy() = default;

void Strategy::time_waits(const std::vector<PhaseModel>& phases) {
  const c10::Device device = phases.front().parameters.front().device();
  if (!device.is_cpu()) stream_waits_ = std::make_unique<detail::StreamWaits>(device);
}

double Strategy::wait_seconds() {
  return stream_waits_ ? stream_waits_->seconds() : traffic().wait_seconds;
}

void Strategy::sum_over_ranks(const at::Tensor& value) {
  Pending sum = group_->start_all_reduce_sum(value);
  detail::timed_wait(sum, stream_waits());
}

bool Strategy::any_rank(bool value) {
  if (world_size() == 1) return value;
  const at::Tensor count = at::zeros({1}).fill_(value ? 1 : 0);
  sum_over_ranks(count);
  return count.item<float>() > 0;
}

std::unique_ptr<Strategy> make_strategy(const ParallelConfig& config, std::unique_ptr<Group> group,
                                        c10::ScalarType compute_dtype, int64_t ranks_per_host,
                                        const std::string& host) {
  if (config.strategy == "none") {
    require(group->size() == 1, ErrorCode::kInvalidArgument, "parallel.strategy is none, but ",
            group->size(), " processes were started; set it to ddp, zero1, fsdp or hsdp");
    return std::make_unique<Replicated>(config, std::move(group));
  }
  if (group->size() == 1) return std::make_unique<Replicated>(config, std::move(group));
  if (config.strategy == "ddp") return std::make_unique<DataParallel>(config, std::move(group));
  return make_sharded(config, std::move(group), compute_dtype, ranks_per_host, host);
}

std::unique_ptr<Strategy> single_process(const ParallelConfig& config) {
  return std::make_unique<Replicated>(config, Group::alone());
}

}  // namespace vgen::dist
