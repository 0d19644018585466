#!/usr/bin/env python3
"""Training steps of the transformers: vgen against the official code, random weights.

Usage: benchmarks/train.py [--llamagen PATH] [--var PATH] [--vgen build/release/apps/vgen]
           [--cases gpt:B:fp32:8 gpt:B:bf16:8 var:d16:fp32:2] [--threads 2] [--rounds 3] [--repeats 3]
           [--device cpu] [--compile]

The PATHs are checkouts of https://github.com/FoundationVision/LlamaGen and VAR; nothing of them is part
of vgen. A case is model:size:precision:batch. A step is forward, backward, clipping and fused AdamW on
fixed random codes, as in train_c2i.py and trainer.py: dropout on, VAR's inputs made of its codes in each
step, bf16 under autocast, torch.compile off (a CPU has little of
it; --compile turns it on, as the GPT's official script has it by default).

Each measurement is a process of its own, the two sides take turns, and the table has medians over
the rounds. The official side gets glibc's freed memory kept (MALLOC_*_ variables), which speeds it
up; vgen sets that by itself. Only torch and numpy are needed: huggingface_hub, which VAR imports for a
class that is not used, is replaced by an empty one. Peak memory is the host's, also with --device cuda.
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

from common import KEEP_FREED_MEMORY, add_device, official_var_builder, prepare, vgen_device


def official_gpt(path, size, batch, device):
    """The model and a function that gives the loss of a forward pass."""
    import torch

    sys.path[0] = str(path)  # instead of the folder of this file, which hides `tokenizer`
    from autoregressive.models.gpt import GPT_models

    model = GPT_models[f"GPT-{size}"](block_size=256, vocab_size=16384, num_classes=1000).to(device)
    codes = torch.randint(16384, (batch, 256), device=device)
    labels = torch.randint(1000, (batch,), device=device)
    return model, lambda: model(cond_idx=labels, idx=codes[:, :-1], targets=codes)[1]


def official_var(path, size, batch, device):
    import torch

    vae, model = official_var_builder(path)(device=device, depth=int(size.removeprefix("d")))
    for parameter in vae.parameters():  # the official builder leaves some uninitialised
        torch.nn.init.normal_(parameter, std=0.02)
    codes = [torch.randint(4096, (batch, n * n), device=device) for n in model.patch_nums]
    labels = torch.randint(1000, (batch,), device=device)
    cross_entropy = torch.nn.CrossEntropyLoss(reduction="none")

    def loss():
        targets = torch.cat(codes, dim=1)
        logits = model(labels, vae.quantize.idxBl_to_var_input(codes))
        each = cross_entropy(logits.view(-1, 4096), targets.view(-1)).view(batch, -1)
        return each.mul(1 / targets.shape[1]).sum(dim=-1).mean()

    return model, loss


def run_official(args):
    """In a process of its own: prints one line of JSON."""
    import torch

    name, size, precision, batch = args.case.split(":")
    wait = prepare(args.device, args.threads)
    torch.manual_seed(0)
    build, path = (official_gpt, args.llamagen) if name == "gpt" else (official_var, args.var)
    model, loss_of = build(path, size, int(batch), args.device)
    model.train()
    if args.compile:
        model.compile()  # in place: its caller sees the same module
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.05},
                                   {"params": vectors, "weight_decay": 0.0}],
                                  lr=1e-4, betas=(0.9, 0.95), fused=True)
    seconds = []
    for i in range(args.repeats + 1):
        start = time.perf_counter()
        with torch.autocast(args.device, dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        wait()
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
    name, size, precision, batch = case.split(":")
    shared = ["--threads", str(args.threads), "--repeats", str(args.repeats)]
    ours = last_json([args.vgen, "bench", f"{name}-train", "--json", "--size", size, "--precision",
                      precision, "--batch", batch, *shared, *vgen_device(args.device)], {})
    ours = json.loads(ours)["rows"][0]
    theirs = last_json([sys.executable, __file__, "--llamagen", str(args.llamagen), "--var",
                        str(args.var), "--case", case, "--device", args.device, *shared,
                        *["--compile"] * args.compile],
                       {**KEEP_FREED_MEMORY, "OMP_NUM_THREADS": str(args.threads)})
    theirs = json.loads(theirs.strip().splitlines()[-1])
    return [(side["seconds"], side["peak_rss_mb"]) for side in (ours, theirs)]


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    root = pathlib.Path(__file__).resolve().parent.parent
    parser.add_argument("--llamagen", type=pathlib.Path)
    parser.add_argument("--var", type=pathlib.Path)
    parser.add_argument("--vgen", type=pathlib.Path, default=root / "build/release/apps/vgen")
    parser.add_argument("--cases", nargs="+", default=["gpt:B:fp32:8", "gpt:B:bf16:8", "var:d16:fp32:2"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="torch.compile for the official model")
    add_device(parser)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        return run_official(args)
    for case in args.cases:
        if (args.llamagen if case.startswith("gpt:") else args.var) is None:
            parser.error(f"{case}: needs --{'llamagen' if case.startswith('gpt:') else 'var'} PATH")
    print("case               vgen s  official s   ratio   vgen MB  official MB", flush=True)
    for case in args.cases:
        ours, theirs = zip(*(one_round(args, case) for _ in range(args.rounds)))
        seconds, peak = (statistics.median(column) for column in zip(*ours))
        official, official_peak = (statistics.median(column) for column in zip(*theirs))
        print(f"{case:16s} {seconds:8.3f}  {official:10.3f}  {official / seconds:6.2f}  {peak:8.0f}"
              f"     {official_peak:8.0f}", flush=True)


if __name__ == "__main__":
    main()
