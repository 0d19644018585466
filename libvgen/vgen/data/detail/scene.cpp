#include "vgen/data/detail/scene.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>

#include "vgen/core/strings.h"

namespace vgen::data::detail {
namespace {

constexpr float kPi = std::numbers::pi_v<float>;

struct Point {
  float x = 0, y = 0;
};

struct Colour {
  const char* name;
  std::array<float, 3> rgb;  // 0 to 255
};

constexpr Colour kPaints[kColours] = {{"red", {214, 40, 40}},     {"orange", {244, 140, 30}},
                                      {"yellow", {245, 215, 60}}, {"green", {60, 170, 75}},
                                      {"cyan", {70, 200, 215}},   {"blue", {50, 90, 220}},
                                      {"purple", {140, 70, 190}}, {"pink", {245, 140, 180}},
                                      {"brown", {140, 90, 50}},   {"white", {245, 245, 240}}};
constexpr Colour kBackgrounds[] = {{"black", {18, 18, 22}},    {"grey", {110, 112, 116}},
                                   {"navy", {18, 28, 72}},     {"dark green", {18, 58, 36}},
                                   {"maroon", {78, 14, 28}},   {"teal", {12, 86, 92}},
                                   {"beige", {206, 192, 160}}, {"lavender", {176, 172, 214}}};

Point turned(Point p, float angle) {
  const float c = std::cos(angle), s = std::sin(angle);
  return {c * p.x + s * p.y, c * p.y - s * p.x};
}

float length(Point p) { return std::sqrt(p.x * p.x + p.y * p.y); }

/// 0 below `low`, 1 above `high`, smooth between.
float smooth_step(float low, float high, float x) {
  const float t = std::clamp((x - low) / (high - low), 0.0f, 1.0f);
  return t * t * (3 - 2 * t);
}

// --- Shapes: distance from the outline, negative inside, in units of the radius; y downwards. ---

/// Regular polygon with a corner upwards and corners at radius 1.
float polygon(Point p, int corners) {
  const float sector = 2 * kPi / static_cast<float>(corners);
  const float angle = std::atan2(p.x, -p.y) + sector / 2;
  const float folded = angle - sector * std::floor(angle / sector) - sector / 2;
  return length(p) * std::cos(std::abs(folded) - sector / 2) - std::cos(sector / 2);
}

/// Five points: the outline runs from (0, 1) to the inner corner at radius 0.42.
float star(Point p) {
  const float sector = 2 * kPi / 5;
  const float angle = std::atan2(p.x, -p.y) + sector / 2;
  const float folded = std::abs(angle - sector * std::floor(angle / sector) - sector / 2);
  const Point q{length(p) * std::sin(folded), length(p) * std::cos(folded)};
  const Point inner{0.42f * std::sin(sector / 2), 0.42f * std::cos(sector / 2)};
  const Point edge{inner.x, inner.y - 1};
  return ((q.y - 1) * edge.x - q.x * edge.y) / length(edge);
}

float heart(Point p) {
  const float x = std::abs(p.x) * 1.25f, y = -p.y * 1.25f + 0.1f;
  const float a = x * x + y * y - 1;
  return (a * a * a - x * x * y * y * y) < 0 ? -std::min(0.6f, std::abs(a) + 0.02f)
                                             : std::max(0.02f, std::abs(a) * 0.5f);
}

float cross(Point p) {
  const float x = std::abs(p.x), y = std::abs(p.y), thin = 0.3f, end = 0.92f;
  return std::min(std::max(x - thin, y - end), std::max(x - end, y - thin));
}

using ShapeDistance = float (*)(Point);
struct Shape {
  const char* name;
  ShapeDistance distance;
};
const Shape kShapeTable[kShapes] = {
    {"circle", [](Point p) { return length(p) - 0.9f; }},
    {"square", [](Point p) { return std::max(std::abs(p.x), std::abs(p.y)) - 0.7f; }},
    {"triangle", [](Point p) { return polygon(p, 3); }},
    {"diamond", [](Point p) { return (std::abs(p.x) * 1.6f + std::abs(p.y) - 1) * 0.53f; }},
    {"hexagon", [](Point p) { return polygon(p, 6); }},
    {"star", star},
    {"ring", [](Point p) { return std::abs(length(p) - 0.7f) - 0.23f; }},
    {"cross", cross},
    {"heart", heart},
    {"crescent", [](Point p) {
       return std::max(length(p) - 0.95f, 0.78f - length({p.x - 0.42f, p.y + 0.1f}));
     }}};

// --- Noise ---

uint32_t mix(uint32_t v) {
  v = (v ^ v >> 16) * 0x7feb352du;
  v = (v ^ v >> 15) * 0x846ca68bu;
  return v ^ v >> 16;
}

/// Uniform in [-1, 1] for every lattice point.
float lattice(int64_t x, int64_t y, uint32_t seed) {
  const uint32_t h =
      mix(static_cast<uint32_t>(x) * 0x9e3779b9u ^ mix(static_cast<uint32_t>(y) ^ seed));
  return static_cast<float>(h >> 8) * (2.0f / 16777216.0f) - 1;
}

float clouds(Point p, uint32_t seed) {
  const float fx = std::floor(p.x), fy = std::floor(p.y);
  const auto x = static_cast<int64_t>(fx), y = static_cast<int64_t>(fy);
  const float u = smooth_step(0, 1, p.x - fx), v = smooth_step(0, 1, p.y - fy);
  const float top = std::lerp(lattice(x, y, seed), lattice(x + 1, y, seed), u);
  const float bottom = std::lerp(lattice(x, y + 1, seed), lattice(x + 1, y + 1, seed), u);
  return std::lerp(top, bottom, v);
}

// --- Textures: 0 = the colour itself, 1 = its dark companion. `soft`: a pixel's width. ---

/// Bands along `t` with `period`, half of each dark, edges one pixel soft.
float bands(float t, float period, float soft) {
  const float wave = std::sin(2 * kPi * t / period);
  const float edge = std::min(1.0f, 2 * kPi * soft / period);
  return smooth_step(-edge, edge, wave);
}

float dots(Point p, float soft) {
  const Point cell{p.x - std::round(p.x), p.y - std::round(p.y)};
  return 1 - smooth_step(0.3f - soft, 0.3f + soft, length(cell));
}

float checks(Point p, float soft) {
  const float a = 2 * bands(p.x, 2, soft) - 1, b = 2 * bands(p.y, 2, soft) - 1;
  return 0.5f - 0.5f * a * b;
}

float texture(int64_t kind, Point p, Point upright, float soft, uint32_t noise) {
  constexpr float kScale = 4;  // cells a radius
  const Point cell{p.x * kScale, p.y * kScale};
  const float cell_soft = soft * kScale;
  switch (kind) {
    case 1:  // striped
      return bands(p.x, 0.4f, soft);
    case 2:  // dotted
      return dots(cell, cell_soft);
    case 3:  // checkered
      return checks({p.x * 3, p.y * 3}, soft * 3);
    case 4:  // wavy
      return bands(p.x + 0.1f * std::sin(9 * p.y), 0.4f, soft);
    case 5:  // ringed
      return bands(length(upright), 0.36f, soft);
    case 6:  // speckled
      return smooth_step(0.1f, 0.3f, clouds({p.x * 11 + 40, p.y * 11 + 40}, noise ^ 0x51u));
    case 7:  // hatched: thin lines both ways
      return std::max(smooth_step(0.75f, 0.95f, std::sin(2 * kPi * p.x * 3)),
                      smooth_step(0.75f, 0.95f, std::sin(2 * kPi * p.y * 3)));
    case 8:  // shaded: dark towards one side
      return smooth_step(-0.8f, 0.8f, p.x);
    case 9:  // marbled
      return smooth_step(
          -0.5f, 0.5f, std::sin(7 * p.x + 5 * clouds({p.x * 3 + 40, p.y * 3 + 40}, noise ^ 0x77u)));
    default:  // plain
      return 0;
  }
}

constexpr const char* kTextureNames[kTextures] = {"plain",  "striped", "dotted",   "checkered",
                                                  "wavy",   "ringed",  "speckled", "hatched",
                                                  "shaded", "marbled"};

uint8_t to_byte(float value) {
  return static_cast<uint8_t>(std::clamp(value + 0.5f, 0.0f, 255.0f));
}

/// Everything about a scene that is the same for all pixels.
class Painter {
 public:
  explicit Painter(const Scene& scene)
      : scene_(scene),
        shape_(kShapeTable[scene.shape].distance),
        turn_(static_cast<float>(scene.turn)),
        texture_turn_(static_cast<float>(scene.texture_turn)),
        inverse_radius_(static_cast<float>(1 / scene.radius)),
        inverse_side_(1.0f / static_cast<float>(std::max(scene.width, scene.height))),
        light_{static_cast<float>(std::cos(scene.light)),
               static_cast<float>(std::sin(scene.light))} {}

  void pixel(int64_t x, int64_t y, uint8_t* out) const {
    const Point at{static_cast<float>(x) + 0.5f, static_cast<float>(y) + 0.5f};
    const Point p{(at.x - static_cast<float>(scene_.center_x)) * inverse_radius_,
                  (at.y - static_cast<float>(scene_.center_y)) * inverse_radius_};
    const Point upright = turned(p, turn_);
    const float soft = inverse_radius_;  // a pixel, in radii
    const float distance = shape_(upright);
    const float cover = 1 - smooth_step(-0.7f * soft, 0.7f * soft, distance);
    const float grain = 3 * lattice(x, y, scene_.noise);

    // The background: a slope of light, clouds, the shadow of the shape.
    const Point uv{at.x * inverse_side_, at.y * inverse_side_};
    const float slope = (uv.x - 0.5f) * light_.x + (uv.y - 0.5f) * light_.y;
    float shade = 1 + 0.25f * slope + 0.08f * clouds({uv.x * 5, uv.y * 5}, scene_.noise ^ 0x9u);
    const float shadow = shape_(turned({p.x + 0.12f * light_.x, p.y + 0.12f * light_.y}, turn_));
    shade *= 1 - 0.5f * (1 - smooth_step(-0.05f, 0.2f, shadow));

    // The shape: lit from one side, dark where its texture says so.
    const float dark =
        texture(scene_.texture, turned(p, texture_turn_), upright, soft, scene_.noise);
    const float lit = 1 + 0.15f * (p.x * light_.x + p.y * light_.y);
    for (int c = 0; c < 3; ++c) {
      const float ground = kBackgrounds[scene_.background].rgb[c] * shade;
      const float paint = kPaints[scene_.colour].rgb[c] * lit * (1 - 0.62f * dark);
      out[c] = to_byte(std::lerp(ground, paint, cover) + grain);
    }
  }

 private:
  const Scene& scene_;
  ShapeDistance shape_;
  float turn_, texture_turn_, inverse_radius_, inverse_side_;
  Point light_;
};

/// "at the top left", "in the centre"
std::string place_of(const Scene& scene) {
  const double x = scene.center_x / static_cast<double>(scene.width);
  const double y = scene.center_y / static_cast<double>(scene.height);
  const char* column = x < 0.42 ? "left" : x > 0.58 ? "right" : "";
  const char* row = y < 0.42 ? "top" : y > 0.58 ? "bottom" : "";
  if (*column == 0 && *row == 0) return "in the centre";
  return str_cat("at the ", row, *column && *row ? " " : "", column);
}

}  // namespace

const char* shape_name(int64_t shape) { return kShapeTable[shape].name; }
const char* colour_name(int64_t colour) { return kPaints[colour].name; }
const char* texture_name(int64_t texture) { return kTextureNames[texture]; }

void draw_rest(Scene& scene, Rng& rng) {
  const auto side = static_cast<double>(std::min(scene.width, scene.height));
  scene.background = rng.between(0, std::ssize(kBackgrounds) - 1);
  scene.radius = side * (0.16 + 0.28 * rng.uniform());
  const double room_x = static_cast<double>(scene.width) - 2 * scene.radius;
  const double room_y = static_cast<double>(scene.height) - 2 * scene.radius;
  scene.center_x = scene.radius + room_x * rng.uniform();
  scene.center_y = scene.radius + room_y * rng.uniform();
  scene.turn = (rng.uniform() - 0.5) * 0.6;
  scene.texture_turn = rng.uniform() * std::numbers::pi;
  scene.light = rng.uniform() * 2 * std::numbers::pi;
  scene.noise = rng.next_u32();
}

std::string describe(const Scene& scene) {
  const double share = scene.radius / static_cast<double>(std::min(scene.width, scene.height));
  const char* size = share < 0.24 ? "small " : share > 0.35 ? "large " : "";
  const std::string words = str_cat(size, texture_name(scene.texture), " ",
                                    colour_name(scene.colour), " ", shape_name(scene.shape));
  return str_cat("a ", words, " ", place_of(scene), " on a ", kBackgrounds[scene.background].name,
                 " background");
}

Image paint(const Scene& scene) {
  Image image{.width = scene.width, .height = scene.height, .rgb = {}};
  image.rgb.resize(static_cast<size_t>(scene.width * scene.height * 3));
  const Painter painter(scene);
  for (int64_t y = 0; y < scene.height; ++y) {
    uint8_t* out = image.row(y);
    for (int64_t x = 0; x < scene.width; ++x, out += 3) painter.pixel(x, y, out);
  }
  return image;
}

}  // namespace vgen::data::detail
