#include "vgen/dist/together.h"

#include "vgen/core/error.h"

namespace vgen::dist {

namespace {

// What ranks tell each other: "+result", or "-code message".
constexpr char kDone = '+', kFailed = '-';

std::string failure(ErrorCode code, std::string_view message) {
  return str_cat(kFailed, static_cast<int>(code), " ", message.substr(0, message.find('\n')));
}

[[noreturn]] void throw_failure(const std::string& rank_name, const std::string& text) {
  const size_t space = text.find(' ');
  int64_t code = 0;
  parse_int(std::string_view(text).substr(1, space - 1), code);
  throw_error(static_cast<ErrorCode>(code), rank_name, ": ", text.substr(space + 1));
}

std::string outcome(const std::function<std::string()>& share) {
  try {
    return kDone + share();
  } catch (const Error& error) {
    return failure(error.code(), error.what());
  } catch (const std::exception& error) {
    return failure(ErrorCode::kInternal, error.what());
  }
}

}  // namespace

std::vector<std::string> together(Group& group, const std::function<std::string()>& share) {
  if (group.size() == 1) return {share()};
  std::vector<std::string> outcomes = group.all_gather_text(outcome(share));
  for (size_t rank = 0; rank < outcomes.size(); ++rank) {
    if (outcomes[rank].front() == kFailed) {
      throw_failure(group.rank_name(static_cast<int64_t>(rank)), outcomes[rank]);
    }
    outcomes[rank].erase(0, 1);
  }
  return outcomes;
}

}  // namespace vgen::dist
