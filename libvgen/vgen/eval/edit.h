#pragma once
// Editing of images without training for it: `vgen edit`. VAR keeps the codes of what stays and
// draws the rest (arXiv:2404.02905, section 5; demo_zero_shot_edit.ipynb); a GPT completes what
// lies below.

#include <cstdint>
#include <string>
#include <vector>

#include "vgen/eval/sample.h"

namespace vgen::eval {

/// Part of an image, shares of its sides.
struct Box {
  double top = 0, left = 0, bottom = 1, right = 1;
};
/// "0.1,0.1,0.8,0.8": top, left, bottom, right, each in [0, 1], the box not empty. Throws
/// Error(kInvalidArgument).
Box parse_box(const std::string& text);

struct EditConfig {
  SampleConfig model;
  std::string image;  ///< file; its middle square is what is edited
  /// inpaint: the box or mask is drawn anew. outpaint: all but the box is. complete (GPT): what
  /// lies below the first `kept_rows` of the image is.
  std::string task = "inpaint";
  std::string box = {};         ///< as parse_box; "" = none
  std::string mask = {};        ///< inpaint, instead of a box: file of the image's size, bright =
                                ///< drawn anew
  bool must_extend = false;     ///< outpaint: the image is shrunk into the box, so that its canvas
                                ///< grows; false: what the image has outside the box is replaced
  double kept_rows = 0.5;       ///< complete: share of the image's height
  int64_t label = -1;           ///< class of what is drawn; -1 = none (VAR)
  int64_t count = 4;            ///< drawings
  bool keep_original = false;   ///< pixels that were kept are pasted back as they were
  std::string out;              ///< folder for the results
  bool must_overwrite = false;  ///< replace older results in `out`
};

/// Into `out` (io/result_folder.h):
///
///   000000.png ...   the drawings, each with its parameters as a PNG text chunk, JSON
///   grid.png         the image, the image with what is drawn anew in grey, the drawings
///   edit.json        all settings that the drawings depend on; written last
///
/// A cell of codes is kept when no pixel of it is to be drawn anew. A box is rounded to cells as in
/// the official notebook. Throws Error; then `out` is as it was.
SampleResult edit_image(const EditConfig& config);

}  // namespace vgen::eval
