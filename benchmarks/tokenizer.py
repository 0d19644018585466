#!/usr/bin/env python3
"""The image tokenizer: vgen against the official LlamaGen code, random weights.

Usage: benchmarks/tokenizer.py --official PATH [--vgen build/release/apps/vgen] [--threads 2]
           [--cases encode:fp32:1 decode:bf16:8 train:bf16:2 ...] [--rounds 3] [--repeats 3]
           [--timeout 900] [--device cpu]

PATH is a checkout of https://github.com/FoundationVision/LlamaGen; nothing of it is part of vgen.
Each measurement is a process of its own, the two sides take turns, and the table has medians over
the rounds. The official side gets glibc's freed memory kept (MALLOC_*_ variables), which speeds it
up; vgen sets that by itself. torch.compile is off, as in the official scripts.

Both sides encode and decode with the weights of one checkpoint, which the official code has written:
vgen maps it into memory, the official side reads it as its scripts do.

What the official code needs to run on a CPU without downloads is done here from outside: its
codebook_used becomes a plain buffer, torchvision's VGG16 is replaced by the same layers with random
weights, and LPIPS loads no file. Only torch and numpy are needed. Peak memory is the host's, also
with --device cuda.
"""
import argparse
import importlib.machinery
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import types

from common import KEEP_FREED_MEMORY, add_device, prepare, vgen_device

CASES = ["encode:fp32:1", "encode:fp32:8", "decode:fp32:1", "decode:fp32:8", "encode:bf16:1",
         "encode:bf16:8", "decode:bf16:1", "decode:bf16:8", "train:fp32:2", "train:bf16:2"]


def stand_in_modules():
    """Modules that the official LPIPS imports, with a VGG16 of random weights."""
    from torch import nn

    def vgg16(**_):
        layers, channels = [], 3
        for width in [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512]:
            if width == "M":
                layers.append(nn.MaxPool2d(2, 2))
            else:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
        model = nn.Module()
        model.features = nn.Sequential(*layers)
        return model

    def module(name, **members):
        sys.modules[name] = types.ModuleType(name)
        # Whoever looks for the module, as torch.optim does, asks for its spec.
        spec = importlib.machinery.ModuleSpec(name, None)
        sys.modules[name].__dict__.update(members, __spec__=spec)

    models = types.ModuleType("torchvision.models")
    models.vgg16 = vgg16
    module("torchvision", models=models)
    sys.modules["torchvision.models"] = models
    module("requests")
    module("tqdm", tqdm=lambda *a, **k: None)


def official_step(model, side, batch, dtype, device):
    """One training step as the official loop: generator, then discriminator."""
    import torch
    from tokenizer.tokenizer_image import lpips, vq_loss

    lpips.LPIPS.load_from_pretrained = lambda self: None
    loss = vq_loss.VQLoss(disc_start=0, disc_weight=0.5).to(device)
    for module in (model, loss):
        module.train()
    options = {"lr": 1e-4, "betas": (0.9, 0.95)}
    generator = torch.optim.Adam(model.parameters(), **options)
    discriminator = torch.optim.Adam(loss.discriminator.parameters(), **options)
    images = torch.rand(batch, 3, side, side, device=device) * 2 - 1
    autocast = lambda: torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == "bf16")

    def step():
        generator.zero_grad()
        with autocast():
            recons, codebook_loss = model(images)
            total = loss(codebook_loss, images, recons, optimizer_idx=0, global_step=1,
                         last_layer=model.decoder.last_layer, logger=None, log_every=10**9)
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        generator.step()
        discriminator.zero_grad()
        with autocast():
            total = loss(codebook_loss, images, recons, optimizer_idx=1, global_step=1, logger=None,
                         log_every=10**9)
        total.backward()
        torch.nn.utils.clip_grad_norm_(loss.discriminator.parameters(), 1.0)
        discriminator.step()

    return step


def run_official(args):
    """In a process of its own: prints one line of JSON."""
    import torch

    sys.path[0] = str(args.official)  # instead of the folder of this file, which hides `tokenizer`
    stand_in_modules()
    from tokenizer.tokenizer_image import vq_model

    wait = prepare(args.device, args.threads)
    torch.manual_seed(0)
    register = vq_model.VectorQuantizer.register_buffer
    vq_model.VectorQuantizer.register_buffer = (
        lambda self, name, value: register(self, name, value.detach()))
    model = vq_model.VQ_models["VQ-16"]()
    if args.case == "weights":
        return torch.save({"model": model.state_dict()}, args.weights)
    model.load_state_dict(torch.load(args.weights, map_location="cpu")["model"])
    model.to(args.device)
    mode, dtype, batch = args.case.split(":")
    batch, side = int(batch), args.image_size
    if mode == "train":
        body = official_step(model, side, batch, dtype, args.device)
    else:
        model.eval()
        if dtype == "bf16":
            model.to(torch.bfloat16)
        images = (torch.rand(batch, 3, side, side) * 2 - 1).to(next(model.parameters()))
        codes = torch.randint(16384, (batch, (side // 16) ** 2), device=args.device)
        shape = (batch, 8, side // 16, side // 16)

        def body():
            with torch.no_grad():
                model.encode(images) if mode == "encode" else model.decode_code(codes, shape)

    seconds = []
    for i in range(args.repeats + 1):
        start = time.perf_counter()
        body()
        wait()
        if i > 0:
            seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": statistics.median(seconds), "peak_rss_mb": peak}))


def measure(command, environment, timeout):
    """The last line that a command prints, as JSON; None where it takes too long."""
    try:
        done = subprocess.run(command, env={**os.environ, **environment}, timeout=timeout,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    except subprocess.TimeoutExpired:
        return None
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\nfailed:\n{done.stderr[-2000:]}")
    return done.stdout


def one_round(args, case):
    """(vgen, official), each (seconds, peak MB); official None where it takes too long."""
    mode, dtype, batch = case.split(":")
    ours = measure([args.vgen, "bench", "tokenizer", "--json", "--mode", mode, "--precision", dtype,
                    "--batch", batch, "--train-batch", batch, "--threads", str(args.threads),
                    "--repeats", str(args.repeats), "--image-size", str(args.image_size),
                    *vgen_device(args.device), "--weights", args.weights], {}, args.timeout)
    ours = json.loads(ours)["rows"][0]
    theirs = measure([sys.executable, __file__, "--official", args.official, "--case", case,
                      "--weights", args.weights, "--device", args.device,
                      "--threads", str(args.threads), "--repeats", str(args.repeats),
                      "--image-size", str(args.image_size)],
                     {**KEEP_FREED_MEMORY, "OMP_NUM_THREADS": str(args.threads)}, args.timeout)
    if theirs is not None:
        theirs = json.loads(theirs.strip().splitlines()[-1])
        theirs = (theirs["seconds"], theirs["peak_rss_mb"])
    return (ours["seconds"], ours["peak_rss_mb"]), theirs


def compare(args):
    print("case             vgen s  official s   ratio   vgen MB  official MB", flush=True)
    for case in args.cases:
        ours, theirs = [], []
        for _ in range(args.rounds):
            mine, other = one_round(args, case)
            ours.append(mine)
            theirs.append(other)
            if other is None:
                break
        seconds, peak = (statistics.median(column) for column in zip(*ours))
        if None in theirs:
            print(f"{case:14s} {seconds:8.3f}  >{args.timeout:9.0f}       -  {peak:8.0f}            -",
                  flush=True)
            continue
        other_seconds, other_peak = (statistics.median(column) for column in zip(*theirs))
        print(f"{case:14s} {seconds:8.3f}  {other_seconds:10.3f}  {other_seconds / seconds:6.2f}"
              f"  {peak:8.0f}  {other_peak:11.0f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    root = pathlib.Path(__file__).resolve().parent.parent
    parser.add_argument("--official", type=pathlib.Path, required=True)
    parser.add_argument("--vgen", type=pathlib.Path, default=root / "build/release/apps/vgen")
    parser.add_argument("--cases", nargs="+", default=CASES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--timeout", type=float, default=900, help="seconds for one process")
    add_device(parser)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--weights", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        return run_official(args)
    with tempfile.TemporaryDirectory() as folder:
        args.weights = f"{folder}/vq16.pt"
        measure([sys.executable, __file__, "--official", args.official, "--case", "weights",
                 "--weights", args.weights], {}, args.timeout)
        compare(args)


if __name__ == "__main__":
    main()
