#include "vgen/train/tokenizer_model.h"

#include "vgen/checkpoint/named_tensors.h"

namespace vgen::train {

namespace {

class VqganModel : public TokenizerModel {
 public:
  explicit VqganModel(const tokenizer::VqganConfig& config) : vqgan_(config) {}

  torch::nn::Module& module() override { return *vqgan_; }
  TokenizerShape shape() const override { return shape_of(vqgan_->config()); }
  void set_compute_dtype(torch::ScalarType dtype) override { vqgan_->set_compute_dtype(dtype); }
  void set_ranks(nn::BatchRanks* ranks) override {
    ranks_ = ranks;
    vqgan_->quantize->set_ranks(ranks);
  }
  std::vector<std::shared_ptr<torch::nn::Module>> blocks() const override {
    return vqgan_->blocks();
  }
  const torch::Tensor& last_weight() const override { return vqgan_->decoder->last_weight(); }

  Output train_forward(const torch::Tensor& image_B3HW, int64_t /*step*/,
                       size_t /*micro_batch*/) override {
    auto output = vqgan_->forward(image_B3HW);
    Output result;
    result.image_B3HW = std::move(output.image_B3HW);
    result.losses = std::move(output.quantized.losses);
    return result;
  }

  torch::Tensor reconstruct(const torch::Tensor& image_B3HW) override {
    return vqgan_->forward(image_B3HW).image_B3HW;
  }

  void begin_validation(int64_t /*num_batches*/) override {
    is_used_V_ =
        torch::zeros({vqgan_->config().codebook_size}, vqgan_->parameters().front().device());
  }

  torch::Tensor measure(const torch::Tensor& image_B3HW, bool counts) override {
    const auto output = vqgan_->forward(image_B3HW);
    if (counts) is_used_V_.index_fill_(0, output.quantized.index_N, 1);
    return output.image_B3HW;
  }

  std::map<std::string, double> code_metrics() const override {
    const torch::Tensor ranks_with_V = is_used_V_.clone();
    if (ranks_ != nullptr) ranks_->sum(ranks_with_V);
    return {{"codebook_usage", ranks_with_V.gt(0).to(torch::kFloat32).mean().item<double>()}};
  }

  void load(io::StateDict state) override {
    checkpoint::load_into(*vqgan_, state, {.optional = {"quantize.codebook_used"}});
  }

 private:
  tokenizer::Vqgan vqgan_;
  nn::BatchRanks* ranks_ = nullptr;
  torch::Tensor is_used_V_;  ///< float32, 1 where a code was used
};

}  // namespace

std::unique_ptr<TokenizerModel> make_vqgan_model(const tokenizer::VqganConfig& config) {
  return std::make_unique<VqganModel>(config);
}

}  // namespace vgen::train
