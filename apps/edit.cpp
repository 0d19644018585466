#include "vgen/eval/edit.h"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "commands.h"
#include "sample_options.h"

namespace vgen::apps {

void add_edit(CLI::App& app) {
  auto config = std::make_shared<eval::EditConfig>();
  config->out = "edited";
  auto* command = app.add_subcommand("edit", "Paint into, around or below an image");
  add_sample_model(*command, config->model);
  command->add_option("--image", config->image, "The image; its middle square is edited")
      ->required();
  command
      ->add_option("--task", config->task,
                   "inpaint: the box or mask is drawn anew; outpaint: all but the box; complete "
                   "(GPT): what lies below")
      ->check(CLI::IsMember({"inpaint", "outpaint", "complete"}))
      ->capture_default_str();
  command->add_option("--box", config->box, "top,left,bottom,right, shares of the image");
  command->add_option("--mask", config->mask,
                      "inpaint: picture of the image's size, bright where it is drawn anew");
  command->add_flag("--extend", config->must_extend,
                    "outpaint: shrink the image into the box, so that its canvas grows");
  command->add_option("--keep-rows", config->kept_rows, "complete: share of the height that stays")
      ->capture_default_str();
  command->add_option("--class-id", config->label, "Class of what is drawn; -1 = none (VAR)")
      ->capture_default_str();
  command->add_option("--count", config->count, "Drawings")->capture_default_str();
  command->add_flag(
      "--keep-original", config->keep_original,
      "Paste the pixels that stay back as they were; codes alone change them a little");
  command->add_option("--out", config->out, "Folder for the drawings, grid.png, edit.json")
      ->capture_default_str();
  command->add_flag("--force", config->must_overwrite, "Replace older results in --out");
  add_sample_settings(*command, config->model.settings);
  add_sample_run(*command, config->model);
  command->footer(
      "Examples:\n"
      "  vgen edit var_d36.pth --tokenizer vae_ch160v4096z32.pth --image dog.jpg \\\n"
      "    --box 0.1,0.1,0.8,0.8 --cfg-scale 3 --more-smooth --keep-original --out filled\n"
      "  vgen edit var_d36.pth --tokenizer vae_ch160v4096z32.pth --image dog.jpg --task outpaint "
      "\\\n"
      "    --box 0.25,0.25,0.75,0.75 --extend --out wider\n"
      "  vgen edit c2i_B_256.pt --tokenizer vq_ds16_c2i.pt --image dog.jpg --task complete \\\n"
      "    --class-id 207 --keep-rows 0.5 --out completed\n");
  command->callback([config] {
    const eval::SampleResult result = eval::edit_image(*config);
    std::printf("%s: %s\n", config->out.c_str(), eval::format_result(result).c_str());
  });
}

}  // namespace vgen::apps
