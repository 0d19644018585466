#pragma once
// The shape of a VAR transformer (arXiv:2404.02905; VAR's models/__init__.py and var.py).
// K scales, L tokens of all scales, V codes.

#include <cstdint>
#include <string>
#include <vector>

#include "vgen/core/config.h"

namespace vgen::var {

struct VarConfig {  // YAML section `model:`; the defaults are d16 at 256 pixels
  int64_t depth = 16;
  int64_t dim = 0;     ///< width; 0 = 64 * depth
  int64_t n_head = 0;  ///< 0 = depth
  /// Sides of the scales, growing; the class alone predicts the first one, all its cells at once.
  /// The published ones of 256 pixels.
  std::vector<int64_t> patch_nums = {1, 2, 3, 4, 5, 6, 8, 10, 13, 16};
  int64_t num_classes = 1000;    ///< label num_classes is the null class; it always has a row
  int64_t codebook_size = 4096;  ///< of the tokenizer
  int64_t z_channels = 32;       ///< width of a code of the tokenizer
  double mlp_ratio = 4;          ///< FFN width over dim
  bool attn_l2_norm = true;   ///< attention between unit vectors, with a learnt scale of each head
  bool shared_adaln = false;  ///< one projection of the condition for all blocks (d36-s)
  double class_dropout_prob = 0.1;  ///< share of labels dropped in training, for guidance
  double dropout_p = 0;             ///< of the outputs of attention and FFN
  double attn_dropout_p = 0;        ///< of the attention weights
  double drop_path_rate = -1;       ///< of the last block, linear from 0 at the first;
                                    ///< -1 = 0.1 * depth / 24
  double norm_eps = 1e-6;

  // Initial weights.
  double init_std = -1;            ///< of matrices and embeddings; -1 = sqrt(1 / (3 * dim))
  double init_head = 0.02;         ///< factor on the output matrix
  double init_adaln = 0.5;         ///< factor on what makes scales and shifts from the condition
  double init_adaln_gamma = 1e-5;  ///< factor on what makes the gates of the branches from it

  int64_t width() const { return dim == 0 ? 64 * depth : dim; }
  int64_t heads() const { return n_head == 0 ? depth : n_head; }
  int64_t head_dim() const { return width() / heads(); }
  int64_t ffn_dim() const;
  int64_t num_scales() const { return static_cast<int64_t>(patch_nums.size()); }  ///< K
  /// Tokens [scale_begin(k), scale_end(k)) of a sequence are scale k, in raster order. k < K.
  int64_t scale_begin(int64_t k) const { return k == 0 ? 0 : scale_end(k - 1); }
  int64_t scale_end(int64_t k) const;
  int64_t num_tokens() const { return scale_end(num_scales() - 1); }  ///< L
  /// drop_path_rate, or the default that -1 stands for.
  double max_drop_path() const;
  /// Throws Error(kInvalidArgument) for sizes that do not fit together.
  void validate() const;
};

template <class Visitor>
void visit_fields(Visitor& v, VarConfig& c) {
  v("depth", c.depth, at_least(1));
  v("dim", c.dim, at_least(0));
  v("n_head", c.n_head, at_least(0));
  v("patch_nums", c.patch_nums, between(1, 1024));
  v("num_classes", c.num_classes, at_least(1));
  v("codebook_size", c.codebook_size, at_least(2));
  v("z_channels", c.z_channels, at_least(1));
  v("mlp_ratio", c.mlp_ratio, more_than(0));
  v("attn_l2_norm", c.attn_l2_norm);
  v("shared_adaln", c.shared_adaln);
  v("class_dropout_prob", c.class_dropout_prob, between(0, 1));
  v("dropout_p", c.dropout_p, between(0, 1));
  v("attn_dropout_p", c.attn_dropout_p, between(0, 1));
  v("drop_path_rate", c.drop_path_rate, between(-1, 1));
  v("norm_eps", c.norm_eps, more_than(0));
  v("init_std", c.init_std, at_least(-1));
  v("init_head", c.init_head, at_least(0));
  v("init_adaln", c.init_adaln, at_least(0));
  v("init_adaln_gamma", c.init_adaln_gamma, at_least(0));
}

/// The published models: "d16", "d20", "d24", "d30" (256 pixels) and "d36-s" (512 pixels, shared
/// adaLN); "d12" follows from the same rule. Throws Error(kInvalidArgument) for another name.
VarConfig var_size(const std::string& name);

}  // namespace vgen::var
