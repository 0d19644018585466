#include "vgen/kernels/detail/cuda_kernels.h"

#include "vgen/kernels/detail/cuda_tensors.h"

namespace vgen::kernels {
namespace cuda {
namespace {

/// (rows, columns) with columns side by side, any distance between rows: halves of wider rows stay
/// where they are.
at::Tensor flat_rows_of(const at::Tensor& x) {
  const at::Tensor rows = x.dim() == 2 ? x : rows_of(x).view({-1, x.size(-1)});
  const bool fits = rows.stride(1) == 1 && rows.stride(0) % kVectorColumns == 0 && is_aligned(rows);
  return fits ? rows : rows.clone(at::MemoryFormat::Contiguous);
}

at::Tensor swiglu(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor gate = flat_rows_of(a), up = flat_rows_of(b);
  at::Tensor out = at::empty(a.sizes(), a.options());
  run(CudaSwiglu{.rows = gate.size(0),
                 .columns = gate.size(1),
                 .a_stride = gate.stride(0),
                 .b_stride = up.stride(0),
                 .a = numbers_of(gate),
                 .b = numbers_of(up),
                 .out = numbers_of(out)},
      a);
  return out;
}

SwigluGradients swiglu_gradient(const at::Tensor& a, const at::Tensor& b, const at::Tensor& dy) {
  const at::Tensor gate = rows_of(a), up = rows_of(b), gradient = rows_of(dy);
  const SwigluGradients result{.a = at::empty(gate.sizes(), gate.options()),
                               .b = at::empty(gate.sizes(), gate.options())};
  run(CudaSwigluGradient{.count = gate.numel(),
                         .a = numbers_of(gate),
                         .b = numbers_of(up),
                         .dy = numbers_of(gradient),
                         .da = numbers_of(result.a),
                         .db = numbers_of(result.b)},
      gate);
  return result;
}

/// Heads whose channels lie side by side and begin where they should.
at::Tensor heads_of(const at::Tensor& x_BSGD) {
  bool fits = x_BSGD.stride(3) == 1 && is_aligned(x_BSGD);
  for (int64_t axis = 0; axis < 3; ++axis) fits = fits && x_BSGD.stride(axis) % kVectorColumns == 0;
  return fits ? x_BSGD : x_BSGD.clone(at::MemoryFormat::Contiguous);
}

HeadSource as_source(const at::Tensor& x_BSGD) {
  return {.data = x_BSGD.const_data_ptr(),
          .batch_stride = x_BSGD.stride(0),
          .position_stride = x_BSGD.stride(1),
          .head_stride = x_BSGD.stride(2),
          .heads = x_BSGD.size(2)};
}

at::Tensor rotate_heads(const at::Tensor& heads_BSGD, const at::Tensor& rope_SP2,
                        int64_t num_turned) {
  const at::Tensor in = heads_of(heads_BSGD), rope = rows_of(rope_SP2);
  at::Tensor out = at::empty(in.sizes(), in.options().memory_format(at::MemoryFormat::Contiguous));
  run(CudaRotate{.batch = in.size(0),
                 .length = in.size(1),
                 .head_dim = in.size(3),
                 .sources = {as_source(in)},
                 .type = number_of(in.scalar_type()),
                 .out = out.data_ptr(),
                 .num_turned = num_turned,
                 .rope = rope.const_data_ptr<float>()},
      in);
  return out;
}

at::Tensor rotate_heads_gradient(const HeadGradients& gradients, const at::Tensor& rope_SP2) {
  const at::Tensor query = heads_of(gradients.query_BHSD.transpose(1, 2));
  const at::Tensor key = heads_of(gradients.key_BKSD.transpose(1, 2));
  const at::Tensor value = heads_of(gradients.value_BKSD.transpose(1, 2));
  const at::Tensor rope = rows_of(rope_SP2);
  const int64_t num_turned = query.size(2) + key.size(2), heads = num_turned + value.size(2);
  at::Tensor out = at::empty({query.size(0), query.size(1), heads, query.size(3)}, query.options());
  run(CudaRotate{.batch = query.size(0),
                 .length = query.size(1),
                 .head_dim = query.size(3),
                 .sources = {as_source(query), as_source(key), as_source(value)},
                 .type = number_of(query.scalar_type()),
                 .out = out.data_ptr(),
                 .num_turned = num_turned,
                 .is_inverse = true,
                 .rope = rope.const_data_ptr<float>()},
      query);
  return out;
}

UnitHeadsResult unit_heads(const at::Tensor& qkv_BL3HD, const at::Tensor& scale_H) {
  const at::Tensor in = rows_of(qkv_BL3HD), scale = floats(scale_H);
  const int64_t rows = in.size(0) * in.size(1), heads = in.size(3), head_dim = in.size(4);
  const auto part = [&] {
    return at::empty({in.size(0), in.size(1), heads, head_dim}, in.options());
  };
  UnitHeadsResult result{.query_BLHD = part(),
                         .key_BLHD = part(),
                         .value_BLHD = part(),
                         .rnorm_N2H = empty_floats({rows, 2, heads}, in)};
  run(CudaUnitHeads{.rows = rows,
                    .heads = heads,
                    .head_dim = head_dim,
                    .type = number_of(in.scalar_type()),
                    .qkv = in.const_data_ptr(),
                    .query = result.query_BLHD.data_ptr(),
                    .key = result.key_BLHD.data_ptr(),
                    .value = result.value_BLHD.data_ptr(),
                    .scale = scale.const_data_ptr<float>(),
                    .rnorm = result.rnorm_N2H.mutable_data_ptr<float>()},
      in);
  return result;
}

UnitHeadsGradients unit_heads_gradient(const at::Tensor& qkv_BL3HD, const at::Tensor& scale_H,
                                       const at::Tensor& rnorm_N2H, const at::Tensor& dquery_BLHD,
                                       const at::Tensor& dkey_BLHD, const at::Tensor& dvalue_BLHD) {
  const at::Tensor in = rows_of(qkv_BL3HD), scale = floats(scale_H);
  const at::Tensor dquery = rows_of(dquery_BLHD), dkey = rows_of(dkey_BLHD);
  const at::Tensor dvalue = rows_of(dvalue_BLHD);
  const int64_t rows = in.size(0) * in.size(1), heads = in.size(3), head_dim = in.size(4);
  const int64_t parts = parts_for(in, rows, heads * head_dim);
  const at::Tensor dqkv = at::empty(in.sizes(), in.options());
  const at::Tensor dscale_PH = empty_floats({parts, heads}, in);
  run(CudaUnitHeadsGradient{.rows = rows,
                            .heads = heads,
                            .head_dim = head_dim,
                            .type = number_of(in.scalar_type()),
                            .qkv = in.const_data_ptr(),
                            .dquery = dquery.const_data_ptr(),
                            .dkey = dkey.const_data_ptr(),
                            .dvalue = dvalue.const_data_ptr(),
                            .dqkv = dqkv.data_ptr(),
                            .scale = scale.const_data_ptr<float>(),
                            .rnorm = rnorm_N2H.const_data_ptr<float>(),
                            .parts = parts,
                            .dscale = dscale_PH.mutable_data_ptr<float>()},
      in);
  return {.qkv_BL3HD = dqkv, .scale_H = dscale_PH.sum(0)};
}

CrossEntropyResult cross_entropy(const at::Tensor& logits_NV, const at::Tensor& target_N,
                                 double label_smoothing) {
  const at::Tensor in = rows_of(logits_NV), targets = target_N.contiguous();
  const auto empty = [&] { return empty_floats({in.size(0)}, in); };
  CrossEntropyResult result{empty(), empty(), empty(), empty()};
  run(CudaCrossEntropy{.rows = in.size(0),
                       .columns = in.size(1),
                       .label_smoothing = static_cast<float>(label_smoothing),
                       .logits = numbers_of(in),
                       .target = targets.const_data_ptr<int64_t>(),
                       .loss = result.loss_N.mutable_data_ptr<float>(),
                       .plain_loss = result.plain_loss_N.mutable_data_ptr<float>(),
                       .is_right = result.is_right_N.mutable_data_ptr<float>(),
                       .log_sum = result.log_sum_N.mutable_data_ptr<float>()},
      in);
  return result;
}

at::Tensor cross_entropy_gradient(const at::Tensor& logits_NV, const at::Tensor& target_N,
                                  const at::Tensor& log_sum_N, const at::Tensor& dloss_N,
                                  double label_smoothing) {
  const at::Tensor in = rows_of(logits_NV), targets = target_N.contiguous();
  const at::Tensor dloss = floats(dloss_N);
  at::Tensor out_NV = at::empty(in.sizes(), in.options());
  run(CudaCrossEntropyGradient{.rows = in.size(0),
                               .columns = in.size(1),
                               .label_smoothing = static_cast<float>(label_smoothing),
                               .logits = numbers_of(in),
                               .dlogits = numbers_of(out_NV),
                               .target = targets.const_data_ptr<int64_t>(),
                               .log_sum = log_sum_N.const_data_ptr<float>(),
                               .dloss = dloss.const_data_ptr<float>()},
      in);
  return out_NV;
}

at::Tensor cached_attention(const CachedAttention& args) {
  const at::Tensor &qkv = args.qkv_RF, &keys = args.key_SKLD;
  const int64_t kv_heads = keys.size(1), head_dim = keys.size(3);
  const int64_t heads = qkv.size(1) / head_dim - 2 * kv_heads;
  at::Tensor out_RC = at::empty({qkv.size(0), heads * head_dim}, qkv.options());
  run(CudaCachedAttention{.rows = qkv.size(0),
                          .heads = heads,
                          .kv_heads = kv_heads,
                          .head_dim = head_dim,
                          .length = keys.size(2),
                          .type = number_of(qkv.scalar_type()),
                          .qkv = qkv.const_data_ptr(),
                          .rope = args.rope_LP2.const_data_ptr<float>(),
                          .slot = args.slot_R.const_data_ptr<int64_t>(),
                          .position = args.position_R.const_data_ptr<int64_t>(),
                          .first = args.first_R.const_data_ptr<int64_t>(),
                          .key = keys.data_ptr(),
                          .value = args.value_SKLD.data_ptr(),
                          .out = out_RC.data_ptr()},
      qkv);
  return out_RC;
}

}  // namespace
}  // namespace cuda

const CudaKernels* cuda_kernels() {
  static const CudaKernels kTable = [] {
    CudaKernels table;
    set_cuda_norms(table);
    table.cached_attention = cuda::cached_attention;
    table.swiglu = cuda::swiglu;
    table.swiglu_gradient = cuda::swiglu_gradient;
    table.rotate_heads = cuda::rotate_heads;
    table.rotate_heads_gradient = cuda::rotate_heads_gradient;
    table.unit_heads = cuda::unit_heads;
    table.unit_heads_gradient = cuda::unit_heads_gradient;
    table.cross_entropy = cuda::cross_entropy;
    table.cross_entropy_gradient = cuda::cross_entropy_gradient;
    return table;
  }();
  return &kTable;
}

bool is_cuda_input(const at::Tensor& x, int64_t max_columns) {
  if (!x.is_cuda() || x.dim() == 0 || x.numel() == 0) return false;
  const auto dtype = x.scalar_type();
  const bool has_type = dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf;
  return has_type && x.size(-1) % kVectorColumns == 0 && x.size(-1) <= max_columns;
}

}  // namespace vgen::kernels
