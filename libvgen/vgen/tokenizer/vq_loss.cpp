#include "vgen/tokenizer/vq_loss.h"

#include "vgen/core/error.h"

namespace vgen::tokenizer {
namespace {

const double kLogitOne = std::log1p(std::exp(-1.0)) + 1;  // bce(logit 1, target t) = this - t
const double kLn2 = std::log(2.0);                        // bce(logit 0, any target)

/// The discriminator's parameters ask for no gradient while this lives.
class FrozenParameters {
 public:
  explicit FrozenParameters(torch::nn::Module& module) : parameters_(module.parameters()) {
    for (torch::Tensor& parameter : parameters_) parameter.set_requires_grad(false);
  }
  ~FrozenParameters() {
    for (torch::Tensor& parameter : parameters_) parameter.set_requires_grad(true);
  }
  FrozenParameters(const FrozenParameters&) = delete;
  FrozenParameters& operator=(const FrozenParameters&) = delete;

 private:
  std::vector<torch::Tensor> parameters_;
};

torch::Tensor or_zero(const torch::Tensor& term, const torch::Tensor& like) {
  return term.defined() ? term : torch::zeros({}, like.options().dtype(torch::kFloat32));
}

}  // namespace

torch::Tensor discriminator_loss(const std::string& name, const torch::Tensor& real_logits,
                                 const torch::Tensor& fake_logits) {
  if (name == "hinge") {
    return 0.5 * ((1 - real_logits).relu().mean() + (1 + fake_logits).relu().mean());
  }
  if (name == "vanilla") {
    return 0.5 * (torch::softplus(-real_logits).mean() + torch::softplus(fake_logits).mean());
  }
  require(name == "non-saturating", ErrorCode::kInvalidArgument, "disc_loss '", name,
          "' is unknown, expected hinge, vanilla or non-saturating");
  // quirk: swapped arguments; the fake logits are kept in the graph with a gradient of zero
  return 0.5 * ((kLogitOne - real_logits).mean() + kLn2 + 0 * fake_logits.mean());
}

torch::Tensor generator_adversarial_loss(const std::string& name,
                                         const torch::Tensor& fake_logits) {
  if (name == "hinge") return -fake_logits.mean();
  require(name == "non-saturating", ErrorCode::kInvalidArgument, "gen_adv_loss '", name,
          "' is unknown, expected hinge or non-saturating");
  return (kLogitOne - fake_logits).mean();  // quirk: swapped arguments
}

VqLossImpl::VqLossImpl(const VqLossConfig& config, int64_t image_size, Lpips lpips)
    : config_(config) {
  require(config.perceptual_weight == 0 || !lpips.is_empty(), ErrorCode::kInvalidArgument,
          "loss.perceptual_weight is ", config.perceptual_weight,
          ", but no LPIPS weights are given; ", lpips_weights_help());
  if (config.disc_weight > 0) {
    discriminator = make_discriminator({.disc_type = config.disc_type,
                                        .disc_dim = config.disc_dim,
                                        .disc_num_layers = config.disc_num_layers,
                                        .image_size = image_size});
    register_module("discriminator", discriminator);
  }
  if (config.perceptual_weight != 0) {
    perceptual_loss = register_module("perceptual_loss", std::move(lpips));
    perceptual_loss->use_dropout = config.perceptual_dropout;
  }
}

void VqLossImpl::set_ranks(nn::BatchRanks* ranks) {
  ranks_ = ranks;
  if (discriminator) discriminator->set_ranks(ranks);
}

double VqLossImpl::disc_weight_at(int64_t step) const {
  return step < config_.disc_start ? 0 : config_.disc_weight;
}

torch::Tensor VqLossImpl::to_compute(const torch::Tensor& image_B3HW) const {
  return image_B3HW.to(image_B3HW.device(), compute_dtype_, /*non_blocking=*/false, /*copy=*/false,
                       torch::MemoryFormat::ChannelsLast);
}

torch::Tensor VqLossImpl::reconstruction_term(const GeneratorInput& input) const {
  return config_.reconstruction_loss == "l1" ? torch::l1_loss(input.recon_B3HW, input.image_B3HW)
                                             : torch::mse_loss(input.recon_B3HW, input.image_B3HW);
}

torch::Tensor VqLossImpl::adaptive_weight(const GeneratorInput& input, const torch::Tensor& nll,
                                          const torch::Tensor& adversarial) const {
  require(input.last_weight.defined() && input.last_weight.requires_grad(), ErrorCode::kInternal,
          "disc_adaptive_weight needs the decoder's last weight");
  const auto gradient = [&](const torch::Tensor& loss) {
    return torch::autograd::grad({loss}, {input.last_weight}, {}, /*retain_graph=*/true)[0];
  };
  // The official code takes the norms of each rank's own gradients; here they are those of the mean
  // loss, so that the number of ranks makes no difference.
  const torch::Tensor gradients =
      nn::mean_over_ranks(ranks_, torch::stack({gradient(nll), gradient(adversarial)}));
  return (gradients[0].norm() / (gradients[1].norm() + 1e-4)).clamp(0.0, 1e4).detach();
}

LossTerms VqLossImpl::generator_loss(const GeneratorInput& input) {
  const torch::Tensor rec_loss = reconstruction_term(input);
  const torch::Tensor recon_B3HW = to_compute(input.recon_B3HW);
  const torch::Tensor zero = torch::zeros({}, rec_loss.options());
  torch::Tensor perceptual = zero;
  torch::Tensor nll = config_.reconstruction_weight * rec_loss;
  if (!perceptual_loss.is_empty()) {
    perceptual = perceptual_loss(to_compute(input.image_B3HW), recon_B3HW).mean();
    nll = nll + config_.perceptual_weight * perceptual;
  }
  const double disc_weight = disc_weight_at(input.step);
  torch::Tensor adversarial = zero;
  if (discriminator) {
    const FrozenParameters frozen(*discriminator);
    const torch::AutoGradMode grad_mode(torch::GradMode::is_enabled() && disc_weight != 0);
    adversarial =
        generator_adversarial_loss(config_.gen_adv_loss, discriminator->forward(recon_B3HW));
  }
  torch::Tensor alpha = torch::ones({}, rec_loss.options());
  if (config_.disc_adaptive_weight && disc_weight != 0) {
    alpha = adaptive_weight(input, nll, adversarial);
  }
  const torch::Tensor vq_loss = or_zero(input.quantizer.vq_loss, rec_loss);
  const torch::Tensor commit_loss = or_zero(input.quantizer.commit_loss, rec_loss);
  const torch::Tensor entropy = or_zero(input.quantizer.entropy_loss, rec_loss);
  LossTerms result;
  result.loss = nll + alpha * disc_weight * adversarial + vq_loss + commit_loss + entropy;
  result.terms = {{"gen_loss", result.loss},
                  {"rec_loss", rec_loss},
                  {"perceptual_loss", perceptual},
                  {"gen_adv_loss", adversarial},
                  {"disc_adaptive_weight", alpha},
                  {"vq_loss", vq_loss},
                  {"commit_loss", commit_loss},
                  {"entropy_loss", entropy},
                  {"codebook_usage", or_zero(input.quantizer.codebook_usage, rec_loss)}};
  for (auto& [name, value] : result.terms) value = value.detach();
  return result;
}

LossTerms VqLossImpl::discriminator_loss(const torch::Tensor& image_B3HW,
                                         const torch::Tensor& recon_B3HW, int64_t step) {
  TORCH_INTERNAL_ASSERT(discriminator, "disc_weight is 0");
  // two passes, real first: each has its own batch statistics
  const torch::Tensor real = discriminator->forward(to_compute(image_B3HW.detach()));
  const torch::Tensor fake = discriminator->forward(to_compute(recon_B3HW.detach()));
  LossTerms result;
  result.loss = disc_weight_at(step) * tokenizer::discriminator_loss(config_.disc_loss, real, fake);
  result.terms = {{"disc_loss", result.loss.detach()},
                  {"logits_real_mean", real.detach().mean()},
                  {"logits_fake_mean", fake.detach().mean()}};
  return result;
}

}  // namespace vgen::tokenizer
