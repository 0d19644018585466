#include "vgen/eval/class_consistency.h"

#include <torch/torch.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "vgen/core/error.h"
#include "vgen/core/strings.h"
#include "vgen/data/image.h"
#include "vgen/data/transforms.h"
#include "vgen/io/mapped_file.h"
#include "vgen/tensor/device.h"

namespace vgen::eval {

namespace {

constexpr int64_t kMaxBytes = int64_t{8} << 30;

// N images as rows of F = H * W * 3 float32 pixels, and their labels.
struct LabelledImages {
  torch::Tensor pixel_NF;
  std::vector<int64_t> labels;

  int64_t size() const { return static_cast<int64_t>(labels.size()); }
};

torch::Tensor as_row(const data::Image& image) {
  const auto size = static_cast<int64_t>(image.rgb.size());
  return torch::from_blob(const_cast<uint8_t*>(image.rgb.data()), {size}, torch::kUInt8)
      .to(torch::kFloat32);
}

struct Samples {
  LabelledImages images;
  int64_t side = 0;
};

Samples read_listed_samples(const std::string& folder, const std::string& index) {
  const io::Json json = io::parse_json(io::read_text_file(index));
  Samples samples;
  std::vector<torch::Tensor> rows;
  for (const io::Json& item : json.get_array("images").items) {
    const std::string& file = item.get_string("file");
    require(file.find('/') == std::string::npos, ErrorCode::kDataCorrupt, index, ": file name '",
            file, "' leads out of the folder");
    const std::string path = str_cat(folder, "/", file);
    data::Image image;
    try {
      image = data::decode_image(io::map_file(path).bytes);
    } catch (Error& error) {
      error.add_context(path);
      throw;
    }
    if (rows.empty()) samples.side = image.width;
    require(image.width == samples.side && image.height == samples.side, ErrorCode::kDataCorrupt,
            path, ": ", image.width, " x ", image.height, " pixels, expected ", samples.side, " x ",
            samples.side, " as the first sample");
    rows.push_back(as_row(image));
    samples.images.labels.push_back(item.get_int("class_id"));
  }
  require(!rows.empty(), ErrorCode::kInvalidArgument, index, ": no images");
  samples.images.pixel_NF = torch::stack(rows);
  return samples;
}

Samples read_samples(const std::string& folder) {
  const std::string index = folder + "/samples.json";
  try {
    return read_listed_samples(folder, index);
  } catch (Error& error) {
    if (std::string(error.what()).find(folder) == std::string::npos) error.add_context(index);
    throw;
  }
}

LabelledImages read_dataset(const data::Dataset& dataset, int64_t side) {
  const int64_t bytes = dataset.size() * side * side * 3 * int64_t{sizeof(float) + sizeof(double)};
  require(bytes <= kMaxBytes, ErrorCode::kInvalidArgument, "comparing pixels with ", dataset.size(),
          " images of ", side, " x ", side, " pixels takes ",
          format_bytes(static_cast<uint64_t>(bytes)), ", more than ", format_bytes(kMaxBytes),
          "; this classifier is for small, simple pictures");
  LabelledImages images;
  std::vector<torch::Tensor> rows;
  for (int64_t i = 0; i < dataset.size(); ++i) {
    require(dataset.label(i) >= 0, ErrorCode::kInvalidArgument, dataset.where(i),
            ": has no label; the classifier needs class folders");
    try {
      rows.push_back(as_row(data::center_crop(data::decode_image(dataset.read(i)), side)));
    } catch (Error& error) {
      error.add_context(dataset.where(i));
      throw;
    }
    images.labels.push_back(dataset.label(i));
  }
  images.pixel_NF = torch::stack(rows);
  return images;
}

struct Neighbour {
  int64_t label = 0;
  bool is_copy = false;  // no pixel differs
};

// Of each query the nearest image. Sums of squares of 8-bit pixels are integers: exact in float64.
std::vector<Neighbour> nearest(const LabelledImages& known, const torch::Tensor& query_NF) {
  constexpr int64_t kRows = 256;  // bounds the matrix of distances
  const torch::Tensor known_NF = known.pixel_NF.to(torch::kFloat64);
  const torch::Tensor norm_N = known_NF.square().sum(1);
  std::vector<Neighbour> neighbours;
  for (const torch::Tensor& chunk : query_NF.split(kRows)) {
    const torch::Tensor query = chunk.to(torch::kFloat64);
    const torch::Tensor distance =
        norm_N + query.square().sum(1, /*keepdim=*/true) - 2 * query.mm(known_NF.t());
    const auto [least, index] = distance.min(1);
    for (int64_t i = 0; i < query.size(0); ++i) {
      const auto at = static_cast<size_t>(index[i].item<int64_t>());
      neighbours.push_back({known.labels[at], least[i].item<double>() == 0});
    }
  }
  return neighbours;
}

}  // namespace

ConsistencyResult class_consistency(const ConsistencyConfig& config) {
  const torch::NoGradGuard no_grad;
  set_num_threads(static_cast<int>(config.threads));
  const Samples samples = read_samples(config.samples);
  const data::Dataset train_set = data::Dataset::open(config.train);
  const data::Dataset val_set = data::Dataset::open(config.val);
  require(train_set.classes() == val_set.classes(), ErrorCode::kInvalidArgument,
          "the validation images have ", val_set.classes().size(),
          " classes with other names than the ", train_set.classes().size(),
          " of the training images");
  const LabelledImages train = read_dataset(train_set, samples.side);
  const LabelledImages val = read_dataset(val_set, samples.side);

  ConsistencyResult result;
  result.names = train_set.classes();
  result.classes.resize(result.names.size());
  const auto drawn = nearest(train, samples.images.pixel_NF);
  for (size_t i = 0; i < drawn.size(); ++i) {
    const int64_t label = samples.images.labels[i];
    require(label >= 0 && label < static_cast<int64_t>(result.classes.size()),
            ErrorCode::kInvalidArgument, config.samples, ": class_id ", label,
            " of a sample, but the training images have the classes 0 to ",
            result.classes.size() - 1);
    const bool is_consistent = drawn[i].label == label;
    ClassTally& tally = result.classes[static_cast<size_t>(label)];
    ++tally.samples;
    tally.consistent += is_consistent;
    result.consistent += is_consistent;
    result.copies += drawn[i].is_copy;
  }
  result.samples = samples.images.size();
  const auto real = nearest(train, val.pixel_NF);
  for (size_t i = 0; i < real.size(); ++i) result.val_correct += real[i].label == val.labels[i];
  result.val_images = val.size();
  return result;
}

io::Json result_json(const ConsistencyResult& result) {
  using io::Json;
  const auto share = [](int64_t part, int64_t whole) {
    return static_cast<double>(part) / static_cast<double>(whole);
  };
  Json json = Json::object();
  json.set("class_consistency", Json::number(share(result.consistent, result.samples)));
  json.set("classifier_accuracy", Json::number(share(result.val_correct, result.val_images)));
  json.set("samples", Json::number(result.samples));
  json.set("consistent", Json::number(result.consistent));
  json.set("copies", Json::number(result.copies));
  json.set("val_images", Json::number(result.val_images));
  json.set("val_correct", Json::number(result.val_correct));
  Json classes = Json::array();
  for (size_t i = 0; i < result.classes.size(); ++i) {
    Json item = Json::object();
    item.set("name", Json::string(result.names[i]));
    item.set("samples", Json::number(result.classes[i].samples));
    item.set("consistent", Json::number(result.classes[i].consistent));
    classes.add(std::move(item));
  }
  json.set("classes", std::move(classes));
  return json;
}

std::string format_result(const ConsistencyResult& result) {
  const auto percent = [](int64_t part, int64_t whole) {
    return format_fixed(100 * static_cast<double>(part) / static_cast<double>(whole), 1);
  };
  std::string text =
      str_cat("class consistency    ", percent(result.consistent, result.samples), " % of ",
              result.samples, " samples look like the class asked for (", result.copies,
              " are copies of a training image)\n", "classifier itself    ",
              percent(result.val_correct, result.val_images), " % of ", result.val_images,
              " real validation images recognised\n", "by class            ");
  for (size_t i = 0; i < result.classes.size(); ++i) {
    const ClassTally& tally = result.classes[i];
    if (tally.samples == 0) continue;
    text += str_cat(" ", result.names[i], ": ", percent(tally.consistent, tally.samples), " %");
  }
  return text + "\n";
}

}  // namespace vgen::eval
