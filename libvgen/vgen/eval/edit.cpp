#include "vgen/eval/edit.h"

#include <ATen/Functions.h>

#include <chrono>
#include <cmath>

#include "vgen/core/log.h"
#include "vgen/data/image.h"
#include "vgen/data/transforms.h"
#include "vgen/eval/pictures.h"
#include "vgen/eval/sample_session.h"
#include "vgen/io/mapped_file.h"
#include "vgen/io/result_folder.h"
#include "vgen/tensor/device.h"
#include "vgen/tensor/image.h"

namespace vgen::eval {

namespace {

using Clock = std::chrono::steady_clock;

bool is_result(const std::string& name) {
  return name == "grid.png" || name == "edit.json" || is_picture_name(name);
}

data::Image read_image(const std::string& path) {
  try {
    return data::decode_image(io::map_file(path).bytes);
  } catch (Error& error) {
    if (!std::string_view(error.what()).starts_with(path)) error.add_context(path);
    throw;
  }
}

// [round(a side), round(b side)), half to even, as the official notebook rounds.
std::pair<int64_t, int64_t> cells(double a, double b, int64_t side) {
  const auto round = [&](double x) {
    return static_cast<int64_t>(std::nearbyint(x * static_cast<double>(side)));
  };
  return {round(a), round(b)};
}

// 1 inside the box, (side, side).
at::Tensor box_map(const Box& box, int64_t side) {
  const auto [top, bottom] = cells(box.top, box.bottom, side);
  const auto [left, right] = cells(box.left, box.right, side);
  at::Tensor map = at::zeros({side, side});
  map.slice(0, top, bottom).slice(1, left, right).fill_(1);
  return map;
}

class Edit {
 public:
  explicit Edit(const EditConfig& config)
      : config_(config),
        folder_(
            config.out,
            {.may_replace = config.must_overwrite, .last = "edit.json", .is_result = is_result}),
        session_(config.model) {}

  SampleResult run();

 private:
  void read();
  at::Tensor mask_of_file(const data::Image& image) const;
  void extend();
  void plan_scales();
  void plan_rows();
  void check() const;
  at::Tensor with_original(const at::Tensor& drawn_3SS) const;
  io::Json describe() const;
  void write(const std::vector<at::Tensor>& drawings);

  const EditConfig& config_;
  io::ResultFolder folder_;
  SampleSession session_;
  at::Tensor image_3SS_;    // in [-1, 1]
  at::Tensor is_drawn_SS_;  // 1 where pixels are drawn anew
  SampleSession::Image plan_;
  double kept_share_ = 0;
};

// The image and what is drawn anew of it, at the model's size.
void Edit::read() {
  const int64_t side = session_.image_size();
  const data::Image image = read_image(config_.image);
  image_3SS_ = data::to_tensor(data::center_crop(image, side));
  if (!config_.mask.empty()) {
    is_drawn_SS_ = mask_of_file(image);
  } else if (config_.task == "complete") {
    is_drawn_SS_ = at::ones({side, side});
  } else {
    const Box box = parse_box(config_.box);
    is_drawn_SS_ = box_map(box, side);
    if (config_.task == "outpaint") is_drawn_SS_ = 1 - is_drawn_SS_;
  }
  if (config_.must_extend) extend();
}

at::Tensor Edit::mask_of_file(const data::Image& image) const {
  const data::Image mask = read_image(config_.mask);
  require(mask.width == image.width && mask.height == image.height, ErrorCode::kInvalidArgument,
          config_.mask, ": a mask of ", mask.width, " x ", mask.height, " pixels, but ",
          config_.image, " has ", image.width, " x ", image.height,
          "; give a mask of the image's size");
  const at::Tensor bright_3SS = data::to_tensor(data::center_crop(mask, session_.image_size()));
  return (bright_3SS.mean(0) > 0).to(at::kFloat);
}

// The image shrunk into the box, its border colours around it.
void Edit::extend() {
  const int64_t side = session_.image_size();
  const Box box = parse_box(config_.box);
  const auto [top, bottom] = cells(box.top, box.bottom, side);
  const auto [left, right] = cells(box.left, box.right, side);
  require(top < bottom && left < right, ErrorCode::kInvalidArgument, "box '",
          printable(config_.box), "': is empty at ", side, " pixels");
  const at::Tensor small =
      at::_upsample_bicubic2d_aa(image_3SS_.unsqueeze(0), {bottom - top, right - left}, false)
          .clamp(-1, 1);
  image_3SS_ = at::replication_pad2d(small, {left, side - right, top, side - bottom}).squeeze(0);
}

// VAR: codes of every scale that stay.
void Edit::plan_scales() {
  const auto patch_nums = session_.tokenizer().patch_nums();
  const int64_t cells_side = patch_nums.back(), side = session_.image_size();
  at::Tensor keep_hh;
  if (config_.mask.empty()) {
    keep_hh = box_map(parse_box(config_.box), cells_side);
    if (config_.task == "inpaint") keep_hh = 1 - keep_hh;
  } else {
    keep_hh = 1 - at::max_pool2d(is_drawn_SS_.view({1, 1, side, side}), side / cells_side)
                      .view({cells_side, cells_side});
  }
  plan_.is_kept_L = infer::kept_codes(keep_hh, patch_nums);
  plan_.given_L = session_.tokenizer().encode(image_3SS_.unsqueeze(0))[0].cpu().contiguous();
  kept_share_ = keep_hh.mean().item<double>();
}

// GPT: the first rows of codes stay.
void Edit::plan_rows() {
  const auto shape = session_.code_shape();
  const auto rows =
      static_cast<int64_t>(std::llround(config_.kept_rows * static_cast<double>(shape[0])));
  plan_.given_L =
      session_.tokenizer().encode(image_3SS_.unsqueeze(0)).flatten(1)[0].cpu().contiguous();
  plan_.num_given = rows * shape[1];
  const int64_t side = session_.image_size();
  is_drawn_SS_ = at::ones({side, side});
  is_drawn_SS_.slice(0, 0, rows * side / shape[0]).zero_();
  kept_share_ = static_cast<double>(rows) / static_cast<double>(shape[0]);
}

void Edit::check() const {
  const bool is_complete = config_.task == "complete";
  require(is_complete != session_.is_var(), ErrorCode::kInvalidArgument, config_.model.checkpoint,
          session_.is_var()
              ? ": VAR paints boxes and masks; use the task inpaint or outpaint"
              : ": a GPT draws in raster order: it can only complete what lies below; "
                "use the task complete");
  require(config_.label >= -1 && config_.label < session_.num_classes(),
          ErrorCode::kInvalidArgument, "class ", config_.label, ": expected 0 to ",
          session_.num_classes() - 1, is_complete ? "" : ", or -1 for none");
  require(!is_complete || config_.label >= 0, ErrorCode::kInvalidArgument,
          "the task complete needs a class: --class-id");
}

// Drawn pixels where they were to be drawn, the image's own elsewhere.
at::Tensor Edit::with_original(const at::Tensor& drawn_3SS) const {
  return at::where(is_drawn_SS_ > 0.5, drawn_3SS, image_3SS_);
}

io::Json Edit::describe() const {
  io::Json json = session_.settings();
  json.set("image_size", io::Json::number(session_.image_size()));
  const c10::DeviceType device = parse_device(config_.model.device).type();
  json.set("device", io::Json::string(c10::DeviceTypeName(device, /*lower_case=*/true)));
  json.set("batch_size", io::Json::number(session_.batch_size()));
  json.set("task", io::Json::string(config_.task));
  json.set("image", io::Json::string(config_.image));
  if (!config_.mask.empty()) json.set("mask", io::Json::string(config_.mask));
  if (!config_.box.empty()) json.set("box", io::Json::string(config_.box));
  if (config_.task == "outpaint") json.set("extend", io::Json::boolean(config_.must_extend));
  if (config_.task == "complete") json.set("keep_rows", io::Json::number(config_.kept_rows));
  json.set("class_id", io::Json::number(config_.label));
  json.set("kept_share", io::Json::number(kept_share_));
  json.set("keep_original", io::Json::boolean(config_.keep_original));
  return json;
}

void Edit::write(const std::vector<at::Tensor>& drawings) {
  const at::Tensor grey_3SS = at::where(is_drawn_SS_ > 0.5, at::zeros({}), image_3SS_);
  std::vector<at::Tensor> shown{to_uint8(image_3SS_.unsqueeze(0))[0],
                                to_uint8(grey_3SS.unsqueeze(0))[0]};
  for (size_t i = 0; i < drawings.size(); ++i) {
    io::Json parameters = describe();
    parameters.set("index", io::Json::number(static_cast<int64_t>(i)));
    const at::Tensor pixels = to_uint8(drawings[i].unsqueeze(0))[0];
    folder_.write(picture_name(static_cast<int64_t>(i)), encode_drawn_png(pixels, parameters));
    shown.push_back(pixels);
  }
  const auto columns = std::min<int64_t>(static_cast<int64_t>(shown.size()), 6);
  folder_.write("grid.png", encode_png(image_grid(at::stack(shown), columns)));
  const std::string text = io::dump_json(describe(), 1) + "\n";
  folder_.write("edit.json", std::as_bytes(std::span(text.data(), text.size())));
}

SampleResult Edit::run() {
  const auto start = Clock::now();
  check();
  read();
  if (session_.is_var()) {
    plan_scales();
  } else {
    plan_rows();
  }
  const std::string part = config_.task == "complete" ? str_cat("keep-rows ", config_.kept_rows)
                           : config_.mask.empty()     ? "the box"
                                                      : config_.mask;
  const std::string code =
      str_cat("at the size of a code, ", session_.tokenizer().downsample(), " pixels");
  require(kept_share_ < 1, ErrorCode::kInvalidArgument, part, ": nothing is to be drawn anew; ",
          !config_.mask.empty() ? "the mask is dark all over the middle square of the image"
          : config_.task == "outpaint"
              ? str_cat(code, ", it covers the whole image, which stays; give a smaller one")
              : str_cat("the part is empty ", code));
  require(kept_share_ > 0, ErrorCode::kInvalidArgument, part,
          ": nothing of the image stays; use vgen sample to draw whole images");
  plan_.label = config_.label < 0 ? session_.num_classes() : config_.label;

  Progress progress(
      {.label = "edit", .unit = "tokens", .total = config_.count * session_.num_tokens()});
  int64_t done = 0;
  std::vector<at::Tensor> drawings;
  for (int64_t first = 0; first < config_.count; first += session_.batch_size()) {
    std::vector<SampleSession::Image> images;
    for (int64_t i = first; i < std::min(config_.count, first + session_.batch_size()); ++i) {
      images.push_back(plan_);
      images.back().index = static_cast<uint64_t>(i);
    }
    const auto batch =
        session_.draw(images, [&](int64_t tokens) { progress.update(done += tokens, ""); });
    for (const at::Tensor& drawn_3SS : batch.image_B3HW.unbind(0)) {
      drawings.push_back(config_.keep_original ? with_original(drawn_3SS) : drawn_3SS);
    }
  }
  write(drawings);
  folder_.commit();
  SampleResult result = session_.times();
  result.images = config_.count;
  result.seconds = std::chrono::duration<double>(Clock::now() - start).count();
  progress.finish(format_result(result));
  return result;
}

void validate(const EditConfig& config) {
  require(config.count >= 1, ErrorCode::kInvalidArgument, "count ", config.count,
          ": expected at least 1");
  const bool has_box = !config.box.empty(), has_mask = !config.mask.empty();
  if (config.task == "complete") {
    require(!has_box && !has_mask && !config.must_extend, ErrorCode::kInvalidArgument,
            "the task complete takes no box and no mask; --keep-rows says what stays");
    require(config.kept_rows > 0 && config.kept_rows < 1, ErrorCode::kInvalidArgument, "keep-rows ",
            config.kept_rows, ": expected above 0 and below 1");
    return;
  }
  require(config.task == "inpaint" || config.task == "outpaint", ErrorCode::kInvalidArgument,
          "task '", printable(config.task), "': expected inpaint, outpaint or complete");
  require(has_box != has_mask, ErrorCode::kInvalidArgument,
          has_box ? "a box and a mask are given; one says what is drawn anew"
                  : "nothing says what is drawn anew; give a box or a mask");
  require(!has_mask || config.task == "inpaint", ErrorCode::kInvalidArgument,
          "a mask belongs to the task inpaint");
  require(!config.must_extend || config.task == "outpaint", ErrorCode::kInvalidArgument,
          "to extend the canvas is for the task outpaint");
  if (has_box) parse_box(config.box);
}

}  // namespace

Box parse_box(const std::string& text) {
  const auto parts = split(text, ',');
  double value[4] = {};
  bool is_valid = parts.size() == 4;
  for (size_t i = 0; is_valid && i < 4; ++i) {
    is_valid = parse_double(parts[i], value[i]) && value[i] >= 0 && value[i] <= 1;
  }
  const Box box{value[0], value[1], value[2], value[3]};
  require(is_valid && box.top < box.bottom && box.left < box.right, ErrorCode::kInvalidArgument,
          "box '", printable(text),
          "': expected top,left,bottom,right as shares of the image, such as 0.1,0.1,0.8,0.8");
  return box;
}

SampleResult edit_image(const EditConfig& config) {
  const at::NoGradGuard no_grad;
  validate(config);
  return Edit(config).run();
}

}  // namespace vgen::eval
