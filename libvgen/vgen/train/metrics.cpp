#include "vgen/train/metrics.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <filesystem>

#include "vgen/core/error.h"

namespace vgen::train {

namespace {
constexpr size_t kRanksShown = 16;  // one by one, in a line of metrics
}

void add_rank_values(Metrics& metrics, const std::string& name, const std::vector<double>& values) {
  if (values.size() < 2) return;
  for (size_t rank = 0; rank < std::min(values.size(), kRanksShown); ++rank) {
    metrics.emplace_back(str_cat(name, "_rank", rank), values[rank]);
  }
  if (values.size() <= kRanksShown) return;
  const auto add = [&](const char* what, std::vector<double>::const_iterator found) {
    metrics.emplace_back(str_cat(name, what), *found);
    metrics.emplace_back(str_cat(name, what, "_rank"), static_cast<double>(found - values.begin()));
  };
  add("_min", std::ranges::min_element(values));
  add("_max", std::ranges::max_element(values));
}

void MetricWindow::add(int64_t step, std::vector<std::pair<std::string, at::Tensor>> terms) {
  const bool is_first = names_.empty();
  std::vector<at::Tensor> values;
  for (size_t i = 0; i < terms.size(); ++i) {
    if (is_first) names_.push_back(terms[i].first);
    TORCH_INTERNAL_ASSERT(i < names_.size() && names_[i] == terms[i].first);
    values.push_back(terms[i].second.detach().to(at::kDouble).reshape({}));
  }
  TORCH_INTERNAL_ASSERT(values.size() == names_.size());
  sums_.resize(names_.size());
  pending_.push_back({step, at::stack(values)});
}

void MetricWindow::check(bool skip_bad) {
  for (const Step& step : pending_) {
    const at::Tensor values = step.values.cpu();
    const double* data = values.const_data_ptr<double>();
    bool is_bad = false;
    for (size_t i = 0; i < names_.size(); ++i) {
      if (std::isfinite(data[i])) continue;
      is_bad = true;
      if (!skip_bad) {
        pending_.clear();
        throw_error(ErrorCode::kInvalidArgument, "step ", step.step, ": ", names_[i], " is ",
                    data[i]);
      }
    }
    if (is_bad) {
      ++skipped_;
      continue;
    }
    for (size_t i = 0; i < names_.size(); ++i) sums_[i] += data[i];
    ++count_;
  }
  pending_.clear();
}

Metrics MetricWindow::means() const {
  Metrics means;
  if (count_ == 0) return means;
  for (size_t i = 0; i < names_.size(); ++i) {
    means.emplace_back(names_[i], sums_[i] / static_cast<double>(count_));
  }
  return means;
}

void MetricWindow::clear() {
  sums_.assign(sums_.size(), 0);
  count_ = 0;
}

io::Json MetricWindow::state() const {
  io::Json sums = io::Json::object();
  for (size_t i = 0; i < names_.size(); ++i) sums.set(names_[i], io::Json::number(sums_[i]));
  io::Json state = io::Json::object();
  state.set("count", io::Json::number(count_));
  state.set("skipped", io::Json::number(skipped_));
  state.set("sums", std::move(sums));
  return state;
}

void MetricWindow::load_state(const io::Json& state) {
  pending_.clear();
  names_.clear();
  sums_.clear();
  count_ = state.get_int("count");
  skipped_ = state.get_int("skipped");
  const io::Json& sums = state.get_object("sums");
  for (const auto& [name, value] : sums.members) {
    names_.push_back(name);
    sums_.push_back(sums.get_float(name));
  }
}

MetricWriter::MetricWriter(const std::string& folder, bool use_tensorboard, int64_t first_step)
    : path_(folder + "/metrics.jsonl"), file_(path_, std::ios::app | std::ios::binary) {
  require(file_.good(), ErrorCode::kUnavailable, path_, ": cannot be opened: ", errno_text(errno));
  if (!use_tensorboard) return;
  const std::string events = folder + "/tensorboard";
  std::filesystem::create_directories(events);
  events_ = std::make_unique<EventWriter>(events, first_step == 0 ? 0 : first_step + 1);
}

void MetricWriter::write(int64_t step, const std::string& prefix, const Metrics& metrics) {
  io::Json line = io::Json::object();
  line.set("step", io::Json::number(step));
  for (const auto& [name, value] : metrics) {
    const std::string full_name = str_cat(prefix, "/", name);
    line.set(full_name, io::Json::number(value));
    if (events_) events_->scalar(full_name, value, step);
  }
  file_ << io::dump_json(line) << '\n' << std::flush;
  require(file_.good(), ErrorCode::kUnavailable, path_, ": cannot be written: ", errno_text(errno));
}

void MetricWriter::image(int64_t step, const std::string& tag, std::string_view png, int64_t height,
                         int64_t width) {
  if (events_) events_->image(tag, png, height, width, step);
}

}  // namespace vgen::train
