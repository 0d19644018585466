#include "vgen/train/tokenizer_model.h"

#include "vgen/checkpoint/named_tensors.h"

namespace vgen::train {

namespace {

class VqganModel : public TokenizerModel {
 public:
  explicit VqganModel(const tokenizer::VqganConfig& config) : vqgan_(config) {}

  torch::nn::Module& module() override { return *vqgan_; }
  void set_compute_dtype(torch::ScalarType dtype) override { vqgan_->set_compute_dtype(dtype); }
  const torch::Tensor& last_weight() const override { return vqgan_->decoder->last_weight(); }

  Output train_forward(const torch::Tensor& image_B3HW, int64_t /*step*/,
                       size_t /*micro_batch*/) override {
    auto output = vqgan_->forward(image_B3HW);
    return {std::move(output.image_B3HW), std::move(output.quantized.losses), {}};
  }

  torch::Tensor reconstruct(const torch::Tensor& image_B3HW) override {
    const auto output = vqgan_->forward(image_B3HW);
    if (is_used_V_.defined()) is_used_V_.index_fill_(0, output.quantized.index_N, 1);
    return output.image_B3HW;
  }

  void begin_validation(int64_t /*num_batches*/) override {
    is_used_V_ =
        torch::zeros({vqgan_->config().codebook_size}, vqgan_->parameters().front().device());
  }

  std::map<std::string, double> code_metrics() const override {
    return {{"codebook_usage", is_used_V_.mean().item<double>()}};
  }

  void load(io::StateDict state) override {
    checkpoint::load_into(*vqgan_, state, {.optional = {"quantize.codebook_used"}});
  }

 private:
  tokenizer::Vqgan vqgan_;
  torch::Tensor is_used_V_;  ///< float32, 1 where a code was used
};

}  // namespace

std::unique_ptr<TokenizerModel> make_vqgan_model(const tokenizer::VqganConfig& config) {
  return std::make_unique<VqganModel>(config);
}

}  // namespace vgen::train
