#!/usr/bin/env python3
"""Training steps of LlamaGen's GPT: vgen against the official code, on the CPU, random weights.

Usage: benchmarks/gpt_train.py --official PATH [--vgen build/release/apps/vgen] [--threads 2]
           [--cases B:fp32:8 B:bf16:8] [--tokens 256] [--rounds 3] [--repeats 3]

PATH is a checkout of https://github.com/FoundationVision/LlamaGen; nothing of it is part of vgen.
A case is size:precision:batch. A step is forward, backward, clipping and fused AdamW, as in
train_c2i.py: dropout on, bf16 under autocast, torch.compile off (a CPU has little of it).

Each measurement is a process of its own, the two sides take turns, and the table has medians over
the rounds. The official side gets glibc's freed memory kept (MALLOC_*_ variables), which speeds it
up; vgen sets that by itself. Only torch and numpy are needed.
"""
import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time

KEEP_FREED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "4294967296",
                     "MALLOC_TRIM_THRESHOLD_": "17179869184",
                     "MALLOC_TOP_PAD_": "67108864"}


def run_official(args):
    """In a process of its own: prints one line of JSON."""
    import torch

    sys.path[0] = str(args.official)  # instead of the folder of this file, which hides `tokenizer`
    from autoregressive.models.gpt import GPT_models

    size, precision, batch = args.case.split(":")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = GPT_models[f"GPT-{size}"](block_size=args.tokens, vocab_size=16384, num_classes=1000)
    model.train()
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.05},
                                   {"params": vectors, "weight_decay": 0.0}],
                                  lr=1e-4, betas=(0.9, 0.95), fused=True)
    codes = torch.randint(16384, (int(batch), args.tokens))
    labels = torch.randint(1000, (int(batch),))
    seconds = []
    for i in range(args.repeats + 1):
        start = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            _, loss = model(cond_idx=labels, idx=codes[:, :-1], targets=codes)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if i > 0:
            seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": statistics.median(seconds), "peak_rss_mb": peak}))


def last_json(command, environment):
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\nfailed:\n{done.stderr[-2000:]}")
    return done.stdout


def one_round(args, case):
    """(vgen, official), each (seconds, peak MB)."""
    size, precision, batch = case.split(":")
    ours = last_json([args.vgen, "bench", "gpt-train", "--json", "--size", size, "--precision",
                      precision, "--batch", batch, "--tokens", str(args.tokens), "--threads",
                      str(args.threads), "--repeats", str(args.repeats)], {})
    ours = json.loads(ours)["rows"][0]
    theirs = last_json([sys.executable, __file__, "--official", args.official, "--case", case,
                        "--threads", str(args.threads), "--repeats", str(args.repeats), "--tokens",
                        str(args.tokens)],
                       {**KEEP_FREED_MEMORY, "OMP_NUM_THREADS": str(args.threads)})
    theirs = json.loads(theirs.strip().splitlines()[-1])
    return [(side["seconds"], side["peak_rss_mb"]) for side in (ours, theirs)]


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    root = pathlib.Path(__file__).resolve().parent.parent
    parser.add_argument("--official", type=pathlib.Path, required=True)
    parser.add_argument("--vgen", type=pathlib.Path, default=root / "build/release/apps/vgen")
    parser.add_argument("--cases", nargs="+", default=["B:fp32:8", "B:bf16:8"])
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        return run_official(args)
    print("case             vgen s  official s   ratio   vgen MB  official MB", flush=True)
    for case in args.cases:
        ours, theirs = zip(*(one_round(args, case) for _ in range(args.rounds)))
        seconds, peak = (statistics.median(column) for column in zip(*ours))
        official, official_peak = (statistics.median(column) for column in zip(*theirs))
        print(f"{case:14s} {seconds:8.3f}  {official:10.3f}  {official / seconds:6.2f}  {peak:8.0f}"
              f"     {official_peak:8.0f}", flush=True)


if __name__ == "__main__":
    main()
