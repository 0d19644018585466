#include "vgen/dist/activation_checkpoint.h"

#include <ATen/autocast_mode.h>
#include <torch/torch.h>

#include <algorithm>
#include <mutex>

#include "vgen/tensor/autocast.h"

namespace vgen::dist {

namespace {

using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

at::Tensor state_of(at::Generator generator) {
  const std::lock_guard lock(generator.mutex());
  return generator.get_state();
}

void set_state(at::Generator generator, const at::Tensor& state) {
  const std::lock_guard lock(generator.mutex());
  generator.set_state(state);
}

/// What a forward pass depends on besides its inputs, as it is on this thread.
struct Surroundings {
  explicit Surroundings(c10::Device the_device) : device(the_device) {
    cpu_random = state_of(at::globalContext().defaultGenerator(c10::kCPU));
    if (!device.is_cpu()) random = state_of(at::globalContext().defaultGenerator(device));
    if (at::autocast::is_autocast_enabled(device.type())) {
      autocast = at::autocast::get_autocast_dtype(device.type());
    }
  }

  void set_random() const {
    set_state(at::globalContext().defaultGenerator(c10::kCPU), cpu_random);
    if (!device.is_cpu()) set_state(at::globalContext().defaultGenerator(device), random);
  }

  c10::Device device;
  at::Tensor cpu_random, random;  // random: of the device, where that is another one
  c10::ScalarType autocast = c10::kFloat;
};

/// While this lives, the random generators go on from where they were.
class RandomReplay {
 public:
  explicit RandomReplay(const Surroundings& then) : now_(then.device) { then.set_random(); }
  ~RandomReplay() { now_.set_random(); }
  RandomReplay(const RandomReplay&) = delete;
  RandomReplay& operator=(const RandomReplay&) = delete;

 private:
  Surroundings now_;
};

/// While this lives, autocast keeps no casts of weights: a cast belongs to the graph (or to the
/// lack of one) of the pass that made it.
class NoCastCache {
 public:
  NoCastCache() : was_enabled_(at::autocast::is_autocast_cache_enabled()) {
    at::autocast::set_autocast_cache_enabled(false);
  }
  ~NoCastCache() { at::autocast::set_autocast_cache_enabled(was_enabled_); }
  NoCastCache(const NoCastCache&) = delete;
  NoCastCache& operator=(const NoCastCache&) = delete;

 private:
  bool was_enabled_;
};

c10::Device device_of(const variable_list& inputs, const variable_list& parameters) {
  for (const variable_list* tensors : {&inputs, &parameters}) {
    for (const at::Tensor& tensor : *tensors) {
      if (tensor.defined()) return tensor.device();
    }
  }
  return c10::kCPU;
}

/// The node of a checkpointed block. Its edges are those of the inputs, then of the parameters.
class Recompute : public torch::autograd::Node {
 public:
  Recompute(torch::autograd::edge_list edges, const variable_list& inputs, BlockForward forward,
            variable_list parameters)
      : Node(std::move(edges)),
        surroundings_(device_of(inputs, parameters)),
        forward_(std::move(forward)),
        parameters_(std::move(parameters)) {
    for (const at::Tensor& input : inputs) inputs_.emplace_back(input, /*is_output=*/false);
  }

  std::string name() const override { return "Recompute"; }

  variable_list apply(variable_list&& gradients) override {
    TORCH_CHECK(!is_released_, torch::autograd::ERR_BACKWARD_TWICE);
    variable_list result(num_outputs());
    if (!gradients[0].defined()) return result;
    const variable_list inputs = detached_inputs();
    variable_list wanted;
    std::vector<size_t> edges;
    for (size_t i = 0; i < num_outputs(); ++i) {
      if (!task_should_compute_output(i)) continue;
      wanted.push_back(i < inputs.size() ? inputs[i] : parameters_[i - inputs.size()]);
      edges.push_back(i);
    }
    if (wanted.empty()) return result;
    const at::Tensor output = compute(inputs);
    if (!output.requires_grad()) return result;
    const variable_list found = torch::autograd::grad(
        {output}, wanted, {gradients[0]}, /*retain_graph=*/false, /*create_graph=*/false,
        /*allow_unused=*/true);
    for (size_t i = 0; i < edges.size(); ++i) result[edges[i]] = found[i];
    return result;
  }

  void release_variables() override {
    is_released_ = true;
    inputs_.clear();
    forward_ = nullptr;
  }

 private:
  // Leaves of a graph of their own, that want gradients where the inputs do.
  variable_list detached_inputs() const {
    variable_list inputs;
    for (const SavedVariable& saved : inputs_) {
      const at::Tensor input = saved.unpack();
      inputs.push_back(!input.defined() ? input
                                        : input.detach().set_requires_grad(input.requires_grad()));
    }
    return inputs;
  }

  at::Tensor compute(const variable_list& inputs) const {
    const RandomReplay random(surroundings_);
    const Autocast autocast(surroundings_.device, surroundings_.autocast);
    const NoCastCache no_cache;
    const at::AutoGradMode grad_mode(true);
    return forward_(inputs);
  }

  Surroundings surroundings_;
  std::vector<SavedVariable> inputs_;
  BlockForward forward_;
  variable_list parameters_;
  bool is_released_ = false;
};

}  // namespace

at::Tensor checkpointed(const std::vector<at::Tensor>& inputs, const BlockForward& forward,
                        const std::vector<at::Tensor>& parameters) {
  if (!at::GradMode::is_enabled()) return forward(inputs);
  auto edges = torch::autograd::collect_next_edges(inputs, parameters);
  const bool is_differentiated =
      std::ranges::any_of(edges, [](const auto& edge) { return edge.is_valid(); });
  if (!is_differentiated) return forward(inputs);
  const std::shared_ptr<Recompute> node(
      new Recompute(std::move(edges), inputs, forward, parameters), torch::autograd::deleteNode);
  at::Tensor output;
  {
    const at::NoGradGuard no_grad;
    const NoCastCache no_cache;
    output = forward(inputs).detach();  // not a view, whatever forward returns
  }
  torch::autograd::create_gradient_edge(output, node);
  return output;
}

at::Tensor CheckpointRunner::run(const torch::nn::Module& block,
                                 const std::vector<at::Tensor>& inputs,
                                 const BlockForward& forward) {
  return checkpointed(inputs, forward, block.parameters());
}

}  // namespace vgen::dist
