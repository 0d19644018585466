#include "vgen/train/code_source.h"

#include <utility>

namespace vgen::train {

namespace {

/// `to_codes` makes a CodeBatch of a batch of the loader.
template <class Loader, class ToCodes>
class LoaderSource : public CodeSource {
 public:
  LoaderSource(Loader loader, ToCodes to_codes)
      : loader_(std::move(loader)), to_codes_(std::move(to_codes)) {}

  codes::CodeBatch next() override { return to_codes_(loader_.next()); }
  std::optional<codes::CodeBatch> next_in_pass() override {
    auto batch = loader_.next_in_pass();
    if (!batch) return {};
    return to_codes_(std::move(*batch));
  }
  data::LoaderPosition position() const override { return loader_.position(); }
  void seek(const data::LoaderPosition& position) override { loader_.seek(position); }
  data::LoaderStats stats() const override { return loader_.stats(); }
  int64_t batches_per_epoch() const override { return loader_.batches_per_epoch(); }

 private:
  Loader loader_;
  ToCodes to_codes_;
};

template <class Loader, class ToCodes>
std::unique_ptr<CodeSource> make_source(Loader loader, ToCodes to_codes) {
  return std::make_unique<LoaderSource<Loader, ToCodes>>(std::move(loader), std::move(to_codes));
}

}  // namespace

std::unique_ptr<CodeSource> codes_from_files(codes::CodeLoader loader) {
  return make_source(std::move(loader), [](codes::CodeBatch batch) { return batch; });
}

std::unique_ptr<CodeSource> codes_of_images(data::Loader loader, EncodeImages encode) {
  return make_source(std::move(loader), [encode = std::move(encode)](data::ImageBatch batch) {
    return codes::CodeBatch{.code_BT = encode(batch.image_B3HW),
                            .label_B = std::move(batch.label_B),
                            .index = std::move(batch.index)};
  });
}

}  // namespace vgen::train
