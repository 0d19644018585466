#pragma once
// A procedural picture: one shape with a colour and a texture on a background.

#include <cstdint>
#include <string>

#include "vgen/core/random.h"
#include "vgen/data/image.h"

namespace vgen::data::detail {

inline constexpr int64_t kShapes = 10;
inline constexpr int64_t kColours = 10;
inline constexpr int64_t kTextures = 10;

const char* shape_name(int64_t shape);      ///< "star"
const char* colour_name(int64_t colour);    ///< "blue"
const char* texture_name(int64_t texture);  ///< "striped"

struct Scene {
  int64_t width = 0, height = 0;  ///< pixels
  int64_t shape = 0, colour = 0, texture = 0, background = 0;
  double center_x = 0, center_y = 0;  ///< of the shape, pixels
  double radius = 0;                  ///< pixels; the shape lies inside this circle
  double turn = 0;                    ///< radians
  double texture_turn = 0;            ///< radians
  double light = 0;                   ///< direction that the light comes from, radians
  uint32_t noise = 0;                 ///< seed of grain and clouds
};

/// What is drawn at random: all but sizes, shape, colour and texture.
void draw_rest(Scene& scene, Rng& rng);

/// "a large striped blue star at the top left on a navy background"
std::string describe(const Scene& scene);

Image paint(const Scene& scene);

}  // namespace vgen::data::detail
