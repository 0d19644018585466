#!/usr/bin/env python3
"""Drawing images with LlamaGen's GPT: vgen against the official code, random weights.

Usage: benchmarks/gpt_sample.py --official PATH [--vgen build/release/apps/vgen] [--threads 2]
           [--cases B:fp32:1 B:bf16:1 B:int8:1 B:bf16:8 L:bf16:1 L:int8:1 process] [--rounds 3]
           [--cfg-scale 4] [--top-k 2000] [--work FOLDER] [--device cpu]

PATH is a checkout of https://github.com/FoundationVision/LlamaGen; nothing of it is part of vgen.
A case is size:precision:batch, 256 tokens per image, guidance on. The official code runs in fp32
and in bf16 for each size and batch, and the better one counts; its int8 does not exist. `process`
is a whole process, checkpoints on disk to one PNG.

Each measurement is a process of its own, the two sides take turns, and the table has medians over
the rounds, with the peak memory of each side. The same checkpoint is loaded by both. The official side
gets glibc's freed memory kept (MALLOC_*_ variables), which speeds it up; vgen sets that by itself.
torch.compile is off, as the official script has it by default. Only torch and numpy are needed.

The first token of `process` is timed by both sides from the start of their process, as the kernel
has it, until the token is drawn: imports, loading and the first pass are in it. It is measured on the
CPU alone. Peak memory is the host's, also with --device cuda.
"""
import argparse
import json
import os
import pathlib
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from common import KEEP_FREED_MEMORY, add_device, prepare, vgen_device

CASES = ["B:fp32:1", "B:bf16:1", "B:int8:1", "B:bf16:8", "L:bf16:1", "L:int8:1", "process"]
NUM_TOKENS = 256


def import_official(path):
    sys.path[0] = str(path)  # instead of the folder of this file, which hides `tokenizer`
    from autoregressive.models.generate import generate
    from autoregressive.models.gpt import GPT_models
    from tokenizer.tokenizer_image.vq_model import VQ_models
    return GPT_models, VQ_models, generate


def seconds_since_process_start():
    """Of this process, which the kernel counts in ticks since the machine was booted: Linux only."""
    stat = pathlib.Path("/proc/self/stat").read_text()
    start_ticks = int(stat.rsplit(")", 1)[1].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - start_ticks / os.sysconf("SC_CLK_TCK")


def time_first_token(generate):
    """Has `generate` note the time at which its first token is there. Returns where it does."""
    module = sys.modules[generate.__module__]
    draw_first, times = module.prefill, []

    def timed(*args, **kwargs):
        token = draw_first(*args, **kwargs)
        times.append(seconds_since_process_start())
        return token

    module.prefill = timed
    return times


def write_checkpoints(official, sizes, folder):
    """Random weights in the official layout, once, for both sides."""
    import torch
    gpt_models, vq_models, _ = import_official(official)
    torch.manual_seed(0)
    for size in sizes:
        model = gpt_models[f"GPT-{size}"](block_size=NUM_TOKENS)
        torch.nn.init.normal_(model.output.weight, std=0.02)  # it starts at zero
        torch.save({"model": model.state_dict()}, folder / f"gpt_{size}.pt")
    torch.save({"model": vq_models["VQ-16"](codebook_size=16384, codebook_embed_dim=8).state_dict()},
               folder / "vq16.pt")


def official_tokens(args):
    """Child process: seconds of a second, equal call, peak memory in MB."""
    size, precision, batch = args.child.split(":")
    import torch
    wait = prepare(args.device, args.threads)
    gpt_models, _, generate = import_official(args.official)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    model = gpt_models[f"GPT-{size}"](block_size=NUM_TOKENS).to(args.device, dtype)
    model.load_state_dict(torch.load(f"{args.work}/gpt_{size}.pt", map_location="cpu")["model"],
                          strict=False)
    model.eval()
    condition = torch.arange(int(batch), device=args.device)
    settings = dict(cfg_scale=args.cfg_scale, top_k=args.top_k, top_p=1.0, temperature=1.0)
    generate(model, condition, 8, **settings)
    wait()
    start = time.perf_counter()
    generate(model, condition, NUM_TOKENS, **settings)
    wait()
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak_mb": peak}))


def official_process(args):
    """Child process: what the official script does for one image, less its package imports."""
    import torch
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    gpt_models, vq_models, generate = import_official(args.official)
    import zlib
    vq = vq_models["VQ-16"](codebook_size=16384, codebook_embed_dim=8)
    vq.eval()
    vq.load_state_dict(torch.load(f"{args.work}/vq16.pt", map_location="cpu")["model"])
    model = gpt_models["GPT-B"](block_size=NUM_TOKENS)
    model.load_state_dict(torch.load(f"{args.work}/gpt_B.pt", map_location="cpu")["model"],
                          strict=False)
    model.eval()
    times = time_first_token(generate)
    index = generate(model, torch.tensor([207]), NUM_TOKENS, cfg_scale=args.cfg_scale,
                     top_k=args.top_k, top_p=1.0, temperature=1.0)
    image = vq.decode_code(index, [1, 8, 16, 16])
    pixels = torch.clamp(127.5 * image[0].permute(1, 2, 0) + 128, 0, 255).to(torch.uint8)
    with open(f"{args.work}/official.bin", "wb") as file:  # stands for the PNG
        file.write(zlib.compress(pixels.numpy().tobytes()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"first_token": times[0], "peak_mb": peak}))


def run_official(args, child):
    command = [sys.executable, __file__, "--official", str(args.official), "--child", child,
               "--work", str(args.work), "--threads", str(args.threads),
               "--cfg-scale", str(args.cfg_scale), "--top-k", str(args.top_k),
               "--device", args.device]
    start = time.time()
    out = subprocess.run(command, check=True, capture_output=True, text=True,
                         env={**os.environ, **KEEP_FREED_MEMORY}).stdout
    result = json.loads(out.strip().splitlines()[-1])
    result["wall"] = time.time() - start
    return result


def run_vgen(args, size, precision, batch):
    command = [args.vgen, "bench", "gpt", "--checkpoint", f"{args.work}/gpt_{size}.pt",
               "--precision", precision, "--batch", str(batch), "--repeats", "1",
               "--threads", str(args.threads), "--cfg-scale", str(args.cfg_scale),
               "--top-k", str(args.top_k), "--tokens", str(NUM_TOKENS), *vgen_device(args.device),
               "--json"]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    row = report["rows"][0]
    return {**row, "peak_mb": row["peak_rss_mb"]}


def run_vgen_process(args, precision):
    out = args.work / "samples"
    shutil.rmtree(out, ignore_errors=True)
    command = [args.vgen, "sample", f"{args.work}/gpt_B.pt", "--tokenizer",
               f"{args.work}/vq16.pt", "--class-id", "207", "--precision", precision, "--threads",
               str(args.threads), "--cfg-scale", str(args.cfg_scale), "--top-k", str(args.top_k),
               "--out", str(out), "--batch-size", "1"]
    start = time.time()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.time() - start
    if status != 0:
        sys.exit(f"failed: {' '.join(command)}")
    summary = json.loads((out / "samples.json").read_text())
    peak = usage.ru_maxrss / 1024
    return {"wall": wall, "first_token": summary["seconds_to_first_token"], "peak_mb": peak,
            **summary}


def median(results, key):
    return statistics.median(result[key] for result in results)


def print_case(name, official, ours):
    best = min(official, key=lambda precision: median(official[precision], "seconds"))
    text = ", ".join(f"{p} {median(official[p], 'seconds'):.2f} s" for p in official)
    peaks = ", ".join(f"{p} {median(official[p], 'peak_mb'):.0f}" for p in official)
    theirs = median(official[best], "seconds")
    mine = median(ours, "seconds")
    rates = ", ".join(f"{a['seconds']:.2f}" for a in ours)
    same = name.split(":")[1]
    own = f" | its {same} {median(official[same], 'seconds') / mine:.2f}x" if same in official else ""
    share = "bandwidth_share"  # of the host's memory: not measured with --device cuda
    if all(share in run for run in ours):
        rates += f"; {median(ours, share) * 100:.0f}% of memory bandwidth"
    print(f"{name:10} official {text} | vgen {mine:.2f} s ({rates}) | best "
          f"{theirs / mine:.2f}x{own} | peak MB official "
          f"{peaks}, vgen {median(ours, 'peak_mb'):.0f}", flush=True)


def print_process(official, ours):
    print(f"process    official {median(official, 'wall'):.2f} s, first token after "
          f"{median(official, 'first_token'):.2f} s | peak MB {median(official, 'peak_mb'):.0f}")
    for precision, results in ours.items():
        print(f"           vgen {precision} {median(results, 'wall'):.2f} s "
              f"({median(official, 'wall') / median(results, 'wall'):.2f}x), first token after "
              f"{median(results, 'first_token'):.2f} s "
              f"({median(results, 'first_token') / median(official, 'first_token') * 100:.0f}% of "
              f"official), load {median(results, 'load_seconds'):.2f} s | peak MB official "
              f"{median(official, 'peak_mb'):.0f}, vgen {median(results, 'peak_mb'):.0f}",
              flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", type=pathlib.Path, required=True)
    parser.add_argument("--vgen", default="build/release/apps/vgen")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cases", nargs="+", default=CASES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cfg-scale", type=float, default=4.0)
    parser.add_argument("--top-k", type=int, default=2000)
    parser.add_argument("--work", type=pathlib.Path)
    add_device(parser)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child == "checkpoints":
        write_checkpoints(args.official, args.cases, args.work)
        return
    if args.child:
        official_process(args) if args.child == "process" else official_tokens(args)
        return
    temporary = None
    if args.work is None:
        temporary = tempfile.TemporaryDirectory()
        args.work = pathlib.Path(temporary.name)
    sizes = {case.split(":")[0] for case in args.cases if case != "process"} | {"B"}
    if not all((args.work / f"gpt_{size}.pt").exists() for size in sizes):
        # In a process of its own: the peak memory of this one would count as its children's.
        subprocess.run([sys.executable, __file__, "--official", str(args.official), "--child",
                        "checkpoints", "--work", str(args.work), "--cases", *sorted(sizes)],
                       check=True)
    theirs = {}  # the official figures of a size and batch serve all precisions of ours
    for case in args.cases:
        if case == "process":
            official, ours = [], {"fp32": [], "bf16": []}
            for _ in range(args.rounds):
                official.append(run_official(args, "process"))
                for precision, results in ours.items():
                    results.append(run_vgen_process(args, precision))
            print_process(official, ours)
            continue
        size, precision, batch = case.split(":")
        known = theirs.setdefault((size, batch), {"fp32": [], "bf16": []})
        ours = []
        for _ in range(args.rounds):
            for name, results in known.items():
                if len(results) < args.rounds:
                    results.append(run_official(args, f"{size}:{name}:{batch}"))
            ours.append(run_vgen(args, size, precision, batch))
        print_case(case, known, ours)


if __name__ == "__main__":
    main()
