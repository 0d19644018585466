#!/usr/bin/env python3
"""Writes tests/golden/var_from_2: a small VAR whose scales begin with four tokens, in the official code.

Usage: scripts/make_var_golden.py --official PATH

PATH is a checkout of https://github.com/FoundationVision/VAR. The tokenizer, the images and the labels
are those of tests/golden/var_vae and train_var. Needs torch and numpy; the editing functions are read
from the notebook in PATH.
"""
import argparse
import json
import pathlib
import sys
import types

import numpy as np
import torch

GOLDEN = pathlib.Path(__file__).resolve().parent.parent / "tests/golden"
OUT = GOLDEN / "var_from_2"
SCALES = (2, 3, 4)
MODEL = dict(
    num_classes=10, depth=2, embed_dim=32, num_heads=2, attn_l2_norm=True, cond_drop_rate=0.0,
    patch_nums=SCALES, flash_if_available=False, fused_if_available=False,
)
BOX = dict(y0=0.25, x0=0.25, y1=1.0, x1=1.0)  # of the edit: a corner of the first scale stays
TRAIN_STEPS = 2
NUM_SEEDS = 40  # the one whose greedy choices are the clearest is kept


def import_official(path):
    """The official modules, without what they only need for logging and downloads."""
    sys.path.insert(0, str(path))
    hub = types.ModuleType("huggingface_hub")
    hub.PyTorchModelHubMixin = type("PyTorchModelHubMixin", (), {})
    logs = types.ModuleType("utils.misc")
    logs.MetricLogger = logs.TensorboardLogger = object
    sys.modules.update({"huggingface_hub": hub, "utils.misc": logs})
    import models.basic_vae
    import models.var
    import models.vqvae
    import trainer
    import utils.lr_control
    from utils.amp_sc import AmpOptimizer

    for module in (models.var, utils.lr_control):
        module.print = lambda *words, **how: None
    notebook = json.loads((path / "demo_zero_shot_edit.ipynb").read_text())
    editing = {}
    exec("".join(notebook["cells"][2]["source"]), editing)
    return types.SimpleNamespace(
        basic_vae=models.basic_vae, var=models.var, vqvae=models.vqvae, trainer=trainer,
        AmpOptimizer=AmpOptimizer, filter_params=utils.lr_control.filter_params, editing=editing,
    )


def load(name):
    return torch.from_numpy(np.load(GOLDEN / name))


def make_vae(official):
    """The tokenizer of var_vae with other scales; it has two levels where the class has five."""
    full = {name: getattr(official.vqvae, name) for name in ("Encoder", "Decoder")}
    for name, coder in full.items():
        narrow = lambda coder=coder, **kw: coder(**{**kw, "ch_mult": (1, 1)})
        setattr(official.vqvae, name, narrow)
    vae = official.vqvae.VQVAE(vocab_size=64, z_channels=16, ch=32, v_patch_nums=SCALES)
    state = torch.load(GOLDEN / "var_vae/vae.pth", weights_only=True)
    del state["quantize.ema_vocab_hit_SV"]  # of four scales
    missing, unexpected = vae.load_state_dict(state, strict=False)
    assert missing == ["quantize.ema_vocab_hit_SV"] and not unexpected
    return vae.eval()


def make_var(official, vae, seed):
    """Random weights in which every parameter matters."""
    var = official.var.VAR(vae_local=vae, **MODEL)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in var.named_parameters():
            is_matrix = parameter.dim() == 2 and "emb" not in name
            std = parameter.shape[1] ** -0.5 if is_matrix else 0.3 if "bias" in name else 0.7
            parameter.normal_(0, std, generator=generator)
        for block in var.blocks:
            block.attn.scale_mul_1H11.copy_(torch.tensor([3.0, 7.0]).log().view(1, 2, 1, 1))
    return var.eval()


class Recorder:
    """Stands in for the official sampler: notes the logits and the indices of each scale."""

    def __init__(self, sample):
        self.sample, self.logits, self.indices = sample, [], []

    def __call__(self, logits, **kw):
        self.logits.append(logits.clone())
        index = self.sample(logits, **kw)
        self.indices.append(index[:, :, 0])
        return index

    def results(self):
        logits = torch.cat(self.logits, 1)
        best, second = logits.topk(2, dim=-1).values.unbind(-1)
        return logits, torch.cat(self.indices, 1), (best - second).min().item()


def draw(official, var, labels, cfg):
    sample = official.var.sample_with_top_k_top_p_
    official.var.sample_with_top_k_top_p_ = recorder = Recorder(sample)
    image = var.autoregressive_infer_cfg(len(labels), labels, g_seed=0, cfg=cfg, top_k=1)
    official.var.sample_with_top_k_top_p_ = sample
    return image, recorder.results()


def edit(official, vae, var, labels):
    """What the notebook does of the images of var_vae, greedily."""
    editing = official.editing
    mask = editing["get_edit_mask"](SCALES, device="cpu", inpainting=True, **BOX)
    ones = [torch.ones(1, 1, p, p) for p in SCALES]
    force = [editing["replace_embedding"](mask, 0 * one, one, *one.shape[2:]) for one in ones]
    sample = editing["sample_with_top_k_top_p_"]
    editing["sample_with_top_k_top_p_"] = recorder = Recorder(sample)
    with torch.no_grad():
        image = editing["autoregressive_infer_cfg_with_mask"](
            var, len(labels), labels, g_seed=0, cfg=3, top_k=1, edit_mask=mask,
            input_img_tokens=vae.img_to_idxBl(load("var_vae/images.npy")),
        )
    editing["sample_with_top_k_top_p_"] = sample
    _, index, margin = recorder.results()
    force = torch.cat([part.flatten() for part in force]).to(torch.int64)
    return dict(mask=mask, force=force, idx=index, image=image), margin


def train(official, vae, seed, scale):
    """Losses and gradient norms of steps with the scales up to `scale` (-1: all)."""
    var = make_var(official, vae, seed).train()
    names, _, groups = official.filter_params(var, nowd_keys={
        "cls_token", "start_token", "task_token", "cfg_uncond", "pos_embed", "pos_1LC", "pos_start",
        "start_pos", "lvl_embed", "gamma", "beta", "ada_gss", "moe_bias", "scale_mul",
    })
    for group in groups:
        group["weight_decay"] = 0.05 * group.pop("wd_sc", 1)
        group["lr"] = 1e-3 * group.pop("lr_sc", 1)
    adamw = torch.optim.AdamW([dict(group) for group in groups], betas=(0.9, 0.95), eps=1e-8)
    losses, norms = [], []

    class Optimizer(official.AmpOptimizer):
        def backward_clip_step(self, stepping, loss):
            losses.append(loss.item())
            return super().backward_clip_step(stepping, loss)

    optimizer = Optimizer(0, adamw, names, list(var.parameters()), grad_clip=2.0)
    log = types.SimpleNamespace(log_iters=(), update=lambda **kw: None)
    trainer = official.trainer.VARTrainer(
        "cpu", SCALES, tuple(2 * p for p in SCALES), vae, var, var, optimizer, 0.0)
    images, labels = load("train_var/images.npy"), load("train_var/labels.npy")
    for step in range(TRAIN_STEPS):
        norm, _ = trainer.train_step(
            it=1, g_it=1, stepping=True, metric_lg=log, tb_lg=None, inp_B3HW=images[step],
            label_B=labels[step], prog_si=scale, prog_wp_it=1)
        norms.append(float(norm))
    return np.array(losses), np.array(norms)


def candidate(official, vae, seed):
    """Everything of one seed, and its least margin between the best and the second code."""
    var = make_var(official, vae, seed)
    labels = torch.tensor([3, 7])
    files, margins = {"gen_labels": labels}, []
    for cfg in (1.5, 4.0):
        image, (logits, index, margin) = draw(official, var, labels, cfg)
        files |= {f"infer_cfg{cfg:g}_{name}": value
                  for name, value in (("image", image), ("logits", logits), ("idx", index))}
        margins.append(margin)
    edit_labels = torch.tensor([3, 10])
    edited, margin = edit(official, vae, var, edit_labels)
    files |= {f"edit_{name}": value for name, value in edited.items()} | {"edit_labels": edit_labels}
    return var, files, min([*margins, margin])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--official", type=pathlib.Path, required=True)
    official = import_official(parser.parse_args().official)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    vae = make_vae(official)
    seed = max(range(NUM_SEEDS), key=lambda seed: candidate(official, vae, seed)[2])
    var, files, margin = candidate(official, vae, seed)

    indices = vae.img_to_idxBl(load("var_vae/images.npy"))
    files["labels"], files["gt_idx"] = torch.tensor([1, 10]), torch.cat(indices, 1)
    files["var_input"] = vae.quantize.idxBl_to_var_input(indices)
    with torch.no_grad():
        logits = var(files["labels"], files["var_input"])
    files["logits"] = logits
    files["loss_tokens"] = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), files["gt_idx"], reduction="none")

    files["train_idx"] = torch.stack([
        torch.cat(vae.img_to_idxBl(image), 1)
        for image in load("train_var/images.npy")[:TRAIN_STEPS]])
    files["train_loss"], files["train_grad_norm"] = train(official, vae, seed, scale=-1)
    files["train_stage_loss"], files["train_stage_grad_norm"] = train(official, vae, seed, scale=1)

    OUT.mkdir(parents=True, exist_ok=True)
    torch.save(var.state_dict(), OUT / "var.pth")
    for name, value in files.items():
        np.save(OUT / f"{name}.npy", np.ascontiguousarray(np.asarray(value)))
    distinct = [len(set(row.tolist())) for row in files["infer_cfg1.5_idx"]]
    cfg_differs = bool((files["infer_cfg1.5_idx"] != files["infer_cfg4_idx"]).any())
    meta = dict(
        case="var_from_2", seed=seed, vae="../var_vae/vae.pth", config=MODEL, box=BOX,
        training=dict(optimizer="AdamW", lr=1e-3, betas=[0.9, 0.95], weight_decay=0.05,
                      max_grad_norm=2.0, stage_last_scale=1),
        margins=dict(greedy_top1_top2=margin),
        sanity=dict(distinct_indices=distinct, cfg_runs_differ=cfg_differs),
    )
    (OUT / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
    print("seed", seed, "margin", margin, "distinct codes", distinct, "guidance matters", cfg_differs)
    print("kept of the first scale:", files["edit_force"][:4].tolist())
    for name in ("train_loss", "train_grad_norm", "train_stage_loss", "train_stage_grad_norm"):
        print(name, files[name].tolist())


if __name__ == "__main__":
    main()
