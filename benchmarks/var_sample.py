#!/usr/bin/env python3
"""Drawing images with VAR: vgen against the official code, random weights, decoding included.

Usage: benchmarks/var_sample.py --official PATH [--vgen build/release/apps/vgen] [--threads 2]
           [--cases fp32:1 bf16:1 int8:1 fp32:4 bf16:4] [--depth 16] [--rounds 3] [--device cpu]

PATH is a checkout of https://github.com/FoundationVision/VAR; nothing of it is part of vgen. A case
is precision:batch; guidance 1.5, top-k 900, top-p 0.96, 256 pixels. The official code's bf16 is its
autocast; it has no int8, which is compared with the better of its two.

Each measurement is a process of its own, the two sides take turns, and the table has medians over
the rounds. The same checkpoints are loaded by both. The official side gets glibc's freed memory kept
(MALLOC_*_ variables), which speeds it up. Only torch and numpy are needed: huggingface_hub, which it
imports for a class that is not used, is replaced by an empty one. Peak memory is the host's, also with
--device cuda.
"""
import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

from common import KEEP_FREED_MEMORY, add_device, official_var_builder, prepare, vgen_device

CASES = ["fp32:1", "bf16:1", "int8:1", "fp32:4", "bf16:4"]


def build_official(path, depth, device="cpu"):
    return official_var_builder(path)(device=device, depth=depth)


def write_checkpoints(args):
    import torch
    torch.manual_seed(0)
    vae, var = build_official(args.official, args.depth)
    for module in vae.modules():  # the official builder leaves these uninitialised
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_uniform_(module.weight, a=5 ** 0.5)
            torch.nn.init.zeros_(module.bias)
    torch.save(var.state_dict(), f"{args.work}/var.pth")
    torch.save(vae.state_dict(), f"{args.work}/vae.pth")


def official_child(args):
    """Seconds of a second, equal call, and the peak of memory in MB."""
    precision, batch = args.child.split(":")
    import torch
    wait = prepare(args.device, args.threads)
    vae, var = build_official(args.official, args.depth, args.device)
    vae.load_state_dict(torch.load(f"{args.work}/vae.pth"))
    var.load_state_dict(torch.load(f"{args.work}/var.pth"))
    vae.eval(), var.eval()
    labels = torch.arange(int(batch), device=args.device)

    def draw():
        with torch.inference_mode(), torch.autocast(args.device, torch.bfloat16,
                                                    precision == "bf16"):
            var.autoregressive_infer_cfg(B=int(batch), label_B=labels, g_seed=0, cfg=1.5, top_k=900,
                                         top_p=0.96)
        wait()

    draw()
    start = time.perf_counter()
    draw()
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak_mb": peak}))


def run_official(args, child):
    command = [sys.executable, __file__, "--official", str(args.official), "--child", child,
               "--work", str(args.work), "--threads", str(args.threads), "--depth",
               str(args.depth), "--device", args.device]
    try:
        out = subprocess.run(command, check=True, capture_output=True, text=True,
                             timeout=args.timeout,
                             env={**os.environ, **KEEP_FREED_MEMORY}).stdout
    except subprocess.TimeoutExpired:
        return {"seconds": float("inf"), "peak_mb": float("inf")}
    return json.loads(out.strip().splitlines()[-1])


def run_vgen(args, precision, batch):
    command = [args.vgen, "bench", "var", "--checkpoint", f"{args.work}/var.pth", "--tokenizer",
               f"{args.work}/vae.pth", "--precision", precision, "--batch", batch, "--repeats", "1",
               "--threads", str(args.threads), *vgen_device(args.device), "--json"]
    row = json.loads(subprocess.run(command, check=True, capture_output=True,
                                    text=True).stdout)["rows"][0]
    return {**row, "peak_mb": row["peak_rss_mb"]}


def median(results, key):
    return statistics.median(result[key] for result in results)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", type=pathlib.Path, required=True)
    parser.add_argument("--vgen", default="build/release/apps/vgen")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cases", nargs="+", default=CASES)
    parser.add_argument("--depth", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one official process")
    parser.add_argument("--work", type=pathlib.Path)
    add_device(parser)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child == "checkpoints":
        return write_checkpoints(args)
    if args.child:
        return official_child(args)
    temporary = None
    if args.work is None:
        temporary = tempfile.TemporaryDirectory()
        args.work = pathlib.Path(temporary.name)
    if not (args.work / "var.pth").exists():
        subprocess.run([sys.executable, __file__, "--official", str(args.official), "--child",
                        "checkpoints", "--work", str(args.work), "--depth", str(args.depth)],
                       check=True)
    print("case       vgen s  decoding  official fp32 s  official bf16 s  its own  its best  "
          "vgen MB  official MB")
    theirs = {}
    for case in args.cases:
        precision, batch = case.split(":")
        known = theirs.setdefault(batch, {"fp32": [], "bf16": []})
        ours = []
        for _ in range(args.rounds):
            for name, results in known.items():
                if len(results) < args.rounds:
                    results.append(run_official(args, f"{name}:{batch}"))
            ours.append(run_vgen(args, precision, batch))
        mine = median(ours, "seconds")
        seconds = {name: median(results, "seconds") for name, results in known.items()}
        best = min(seconds, key=seconds.get)
        own = f"{seconds[precision] / mine:7.2f}" if precision in seconds else "      -"
        print(f"{case:9} {mine:7.2f}  {median(ours, 'decode_seconds'):8.2f}  "
              f"{seconds['fp32']:15.2f}  {seconds['bf16']:15.2f}  {own}  "
              f"{seconds[best] / mine:8.2f}  {median(ours, 'peak_mb'):7.0f}  "
              f"{median(known[best], 'peak_mb'):11.0f}", flush=True)


if __name__ == "__main__":
    main()
