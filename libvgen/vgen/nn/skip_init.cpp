#include "vgen/nn/skip_init.h"

namespace vgen::nn {
namespace {

thread_local int depth = 0;

}  // namespace

SkipInit::SkipInit() { ++depth; }
SkipInit::~SkipInit() { --depth; }
bool SkipInit::is_active() { return depth > 0; }

}  // namespace vgen::nn
