#pragma once
// The shape of a LlamaGen transformer (arXiv:2406.06525 table 1; LlamaGen's gpt.py: ModelArgs).

#include <cstdint>
#include <string>

#include "vgen/core/config.h"

namespace vgen::gpt {

struct GptConfig {                 // YAML section `model:`
  std::string model_type = "c2i";  ///< c2i: class labels; t2i: caption features
  int64_t vocab_size = 16384;      ///< image codes
  int64_t block_size = 256;        ///< image tokens per sample, a square number
  int64_t n_layer = 12;
  int64_t n_head = 12;
  int64_t n_kv_head = 0;  ///< heads of keys and values; 0 = n_head
  int64_t dim = 768;
  int64_t multiple_of = 256;      ///< the FFN width is rounded up to it
  double ffn_dim_multiplier = 0;  ///< scales the FFN width; 0 = off
  double rope_base = 10000;
  double norm_eps = 1e-5;
  double initializer_range = 0.02;  ///< standard deviation of the initial weights
  double token_dropout_p = 0.1;     ///< of the embedded sequence
  double resid_dropout_p = 0.1;     ///< of the attention output
  double ffn_dropout_p = 0.1;
  double drop_path_rate = 0;        ///< of the last layer; linear from 0 at the first
  int64_t num_classes = 1000;       ///< c2i; label num_classes is the null class
  double class_dropout_prob = 0.1;  ///< share of conditions dropped in training, for guidance
  int64_t caption_dim = 2048;       ///< t2i: width of the caption features
  int64_t cls_token_num = 1;        ///< condition tokens: 1 for c2i, 120 for the published t2i

  int64_t head_dim() const { return dim / n_head; }
  /// Rows of the class table. quirk: the null class has one only where labels are dropped.
  int64_t class_rows() const { return num_classes + (class_dropout_prob > 0 ? 1 : 0); }
  int64_t num_kv_heads() const { return n_kv_head == 0 ? n_head : n_kv_head; }
  int64_t ffn_dim() const;
  /// Rows and columns of the image's code grid.
  int64_t grid_size() const;
  /// Throws Error(kInvalidArgument) for sizes that do not fit together.
  void validate() const;
};

template <class Visitor>
void visit_fields(Visitor& v, GptConfig& c) {
  v("model_type", c.model_type, one_of({"c2i", "t2i"}));
  v("vocab_size", c.vocab_size, at_least(2));
  v("block_size", c.block_size, at_least(1));
  v("n_layer", c.n_layer, at_least(1));
  v("n_head", c.n_head, at_least(1));
  v("n_kv_head", c.n_kv_head, at_least(0));
  v("dim", c.dim, at_least(1));
  v("multiple_of", c.multiple_of, at_least(1));
  v("ffn_dim_multiplier", c.ffn_dim_multiplier, at_least(0));
  v("rope_base", c.rope_base, more_than(0));
  v("norm_eps", c.norm_eps, more_than(0));
  v("initializer_range", c.initializer_range, more_than(0));
  v("token_dropout_p", c.token_dropout_p, between(0, 1));
  v("resid_dropout_p", c.resid_dropout_p, between(0, 1));
  v("ffn_dropout_p", c.ffn_dropout_p, between(0, 1));
  v("drop_path_rate", c.drop_path_rate, between(0, 1));
  v("num_classes", c.num_classes, at_least(1));
  v("class_dropout_prob", c.class_dropout_prob, between(0, 1));
  v("caption_dim", c.caption_dim, at_least(1));
  v("cls_token_num", c.cls_token_num, at_least(1));
}

/// The published sizes: "B", "L", "XL", "XXL", "XXXL", "1B", "3B", "7B". Throws
/// Error(kInvalidArgument) for another name.
GptConfig gpt_size(const std::string& name);

}  // namespace vgen::gpt
