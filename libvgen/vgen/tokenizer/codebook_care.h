#pragma once
// What keeps the codebook of a multi-scale quantizer alive when it is trained from scratch. Nothing
// of it is in the official model: with reseed_every and scale_dropout 0 training is the official
// one.
//
// Two things go wrong there. A code that is the nearest of no vector gets no gradient and stays
// where it is. And a coarse scale has few cells: their averages are small beside what fine scales
// hold, all of them fall to the same code, and the fine scales learn to do without that scale.
//
// 1. Reseeding. A code is dead when no scale uses it: its average of hits (ema_vocab_hit_SV) is
//    below `reseed_below` of an even share, B p^2 / V, at every scale. Every `reseed_every` steps
//    dead codes move to vectors that the quantizer meets in the batch. The scales share them in
//    proportion to p, rounded up, coarse ones first: between equal parts and the number of cells.
//    What a scale cannot take goes to the finer ones. Inside a scale a vector is drawn with a
//    probability proportional to its squared distance from the nearest living code, as in
//    k-means++. The codes begin near zero, where every vector can pull at them, and not at vectors
//    of the first batch, which the encoder soon leaves behind. Weights that bring no averages along
//    count as used.
// 2. Scale dropout (quantizer dropout, arXiv:2107.03312, section III-C, over scales). For a share
//    of the images the sum of scales ends early, at a scale that is equally likely to be any but
//    the last, so that the decoder wants a picture of the coarse scales, too. It moves the picture
//    into the coarse scales and costs sharpness of the whole.
//
// All is a function of weights, buffers, seed and step: a resumed run needs no further state.
// B batch, Z latent channels, h = w the last p, K scales, V codes.

#include <torch/torch.h>

#include "vgen/core/config.h"
#include "vgen/core/random.h"
#include "vgen/tokenizer/multi_scale_quantizer.h"

namespace vgen::tokenizer {

struct CodebookCareConfig {    // YAML section `codebook:`
  int64_t reseed_every = 20;   ///< steps; 0 = dead codes stay where they are
  int64_t reseed_until = 0;    ///< last step that moves codes; 0 = to the end. Averaged weights
                               ///< (ema_decay) follow a moved code as slowly as all else: end early
  double reseed_below = 0.08;  ///< share of the even share below which a scale does not use a code
  double scale_dropout = 0;    ///< share of the images whose sum of scales ends early
};
template <class Visitor>
void visit_fields(Visitor& v, CodebookCareConfig& c) {
  v("reseed_every", c.reseed_every, at_least(0));
  v("reseed_until", c.reseed_until, at_least(0));
  v("reseed_below", c.reseed_below, between(0, 1));
  v("scale_dropout", c.scale_dropout, between(0, 1));
}

/// Which codes each scale uses by ema_vocab_hit_SV: bool (K, V), an average of at least `share` of
/// B p^2 / V. The official metric (0.08) takes the finest scale's even share for all scales, which
/// a coarse one can hardly reach; here each has its own. batch: images of a training forward, those
/// of all ranks.
torch::Tensor used_codes_KV(const MultiScaleQuantizerImpl& quantizer, int64_t batch, double share);

/// Moves dead codes as described above; returns how many. f_BZhw: what the encoder gives for a
/// batch, without graph; one that is not finite moves none. The averages of a moved code become an
/// even share at the scale that it was taken from, zero elsewhere. Several ranks give all the same:
/// the latents of their whole batch.
int64_t reseed_codes(MultiScaleQuantizerImpl& quantizer, const torch::Tensor& f_BZhw, double below,
                     Rng rng);

/// For MultiScaleQuantizerImpl::forward_until: int64 (batch) on the CPU, num_scales - 1 for images
/// whose sum is whole. num_scales >= 2.
torch::Tensor draw_last_scales(int64_t batch, int64_t num_scales, double dropout, Rng rng);

}  // namespace vgen::tokenizer
