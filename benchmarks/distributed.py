#!/usr/bin/env python3
"""Training a GPT on several processes: vgen against PyTorch's DDP and FSDP2, over Gloo on the CPU.

Usage: benchmarks/distributed.py --official PATH [--vgen build/release/apps/vgen] [--layers 12]
           [--ranks 2] [--strategies ddp fsdp] [--batch 4] [--precision bf16] [--rounds 3] [--repeats 4]
           [--warmup 2] [--check]

PATH is a checkout of https://github.com/FoundationVision/LlamaGen; nothing of it is part of vgen. Both
sides train its GPT-B (or one of fewer layers) on random codes: --batch samples of 256 tokens a rank,
one thread a rank, dropout on, clipping, fused AdamW. vgen runs `vgen train`; the official model runs
under DistributedDataParallel, and under fully_shard of each layer and of the rest, once with autocast
around it (weights gathered in float32) and once with the dtypes of LlamaGen's script
(MixedPrecisionPolicy: gathered in --precision; sums in float32, as vgen's). The better of the two counts.

Both sides are timed by this script's clock: each process adds a line to a file after a step, and a step
has ended when the slowest rank has written its line. vgen's line is that of metrics.jsonl, which rank 0
writes when the numbers of all ranks have come: its steps have the metrics, and the question whether
a rank was told to stop, in them. A figure is the median of --repeats steps after the first --warmup ones, in
which buckets are made and the order of the blocks is learned; the table has medians over the rounds, in
which all take turns. The ratios are those of the rounds: all of them, the least, the median and the largest.
With --check the script ends with 1 where a median misses its goal.

Hidden is the share of the communication that does not lengthen a step:

    1 - (step - step of as many processes that do not know of each other) / time of its collectives alone

where the last runs PyTorch's Gloo, which both sides use, on tensors of the sizes in question while
nothing else computes. Below 0: communication costs more beside the computation than without it. The
difference of two steps is as uncertain as the machine's speed; of vgen, which counts for how long its
ranks stand still for the others (comm_wait_share), 1 - that / time of the collectives is printed too.

The official side gets glibc's freed memory kept (MALLOC_*_ variables), which speeds it up; vgen sets
that by itself. Only torch and numpy are needed.
"""
import argparse
import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time

from train import KEEP_FREED_MEMORY

NUM_TOKENS = 256
BUCKET_BYTES = 25 * 2**20  # what both sides sum at once under ddp
# The official side's ways to do the same; the fastest counts.
PEERS = {"ddp": ["ddp"], "fsdp": ["fsdp", "fsdp-mixed"]}
GOALS = {"ddp": 1.1, "fsdp": 1.3}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class StepClock:
    """When the steps of several processes end: each of the files gets a line for a step, and the last one
    of them counts."""

    def __init__(self, paths):
        self.paths = [pathlib.Path(path) for path in paths]
        self.files = [None] * len(self.paths)
        self.ends = [[] for _ in self.paths]

    def look(self):
        for i, path in enumerate(self.paths):
            if self.files[i] is None and path.exists():
                self.files[i] = path.open("rb")
            if self.files[i] is not None:
                self.ends[i] += [time.perf_counter()] * self.files[i].read().count(b"\n")

    def seconds(self):
        """From the end of one step to that of the next."""
        ends = [max(of_ranks) for of_ranks in zip(*self.ends)]
        return [after - before for before, after in zip(ends, ends[1:])]


def run_ranks(args, command_of, environment, together=True, clock=None):
    """Runs a command for each rank at the same time and returns what they printed. With `together`
    they know of each other as torchrun would have it."""
    port, processes = free_port(), []
    for rank in range(args.ranks):
        own = {**os.environ, **environment, "OMP_NUM_THREADS": "1"}
        if together:
            own |= {"RANK": str(rank), "WORLD_SIZE": str(args.ranks), "LOCAL_RANK": str(rank),
                    "LOCAL_WORLD_SIZE": str(args.ranks), "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port)}
        processes.append(subprocess.Popen(list(map(str, command_of(rank))), env=own, text=True,
                                          stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    while clock and any(process.poll() is None for process in processes):
        clock.look()
        time.sleep(0.005)
    outcomes = [process.communicate() for process in processes]
    for process, (_, errors) in zip(processes, outcomes):
        if process.returncode != 0:
            sys.exit(f"{' '.join(process.args)}\nfailed:\n{errors[-2000:]}")
    return [out for out, _ in outcomes]


def median_step(args, clock):
    """Of the steps after the first ones."""
    seconds = clock.seconds()
    if len(seconds) != args.warmup + args.repeats - 1:
        sys.exit(f"{clock.paths[0]}: {len(seconds) + 1} steps, expected {args.warmup + args.repeats}")
    return statistics.median(seconds[args.warmup - 1:])


# --- the official model: in processes of their own ---


def official_model(args):
    sys.path[0] = str(args.official)
    from autoregressive.models.gpt import ModelArgs, Transformer

    return Transformer(ModelArgs(n_layer=args.layers, n_head=12, dim=768, block_size=NUM_TOKENS,
                                 vocab_size=16384, num_classes=1000))


def shard(model, precision, is_mixed):
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    options = {"mesh": init_device_mesh("cpu", (torch.distributed.get_world_size(),))}
    if is_mixed:
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        options["mp_policy"] = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for layer in model.layers:
        fully_shard(layer, **options)
    fully_shard(model, **options)


def train_official(args):
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    if args.child != "none":
        torch.distributed.init_process_group("gloo")
    model = official_model(args).train()
    if args.child == "ddp":
        model = torch.nn.parallel.DistributedDataParallel(model)
    elif args.child != "none":
        shard(model, args.precision, args.child == "fsdp-mixed")
    codes = torch.randint(16384, (args.batch, NUM_TOKENS))
    labels = torch.randint(1000, (args.batch,))
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        [{"params": [p for p in parameters if p.dim() >= 2], "weight_decay": 0.05},
         {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0}],
        lr=1e-4, betas=(0.9, 0.95), fused=True)
    autocast = args.precision == "bf16" and args.child != "fsdp-mixed"
    log = args.log.open("a")
    for step in range(args.warmup + args.repeats):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = model(cond_idx=labels, idx=codes[:, :-1], targets=codes)[1]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        print(step, file=log, flush=True)


def time_collectives(args):
    """Seconds of the collectives of a step, one after the other, of: gradients in buckets (ddp); blocks
    gathered twice and their gradients scattered (fsdp)."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    model = official_model(args)
    total = sum(p.numel() for p in model.parameters())
    block = sum(p.numel() for p in model.layers[0].parameters())
    # What lies outside of blocks stays between forward and backward pass.
    gathered = [(block, 2)] * args.layers + [(total - args.layers * block, 1)]
    weights = torch.bfloat16 if args.child == "collectives:bf16" else torch.float32

    def sum_gradients():
        left = total * 4
        while left > 0:
            dist.all_reduce(torch.zeros(min(left, BUCKET_BYTES) // 4))
            left -= BUCKET_BYTES

    def gather_and_scatter():
        for size, times in gathered:
            own = -(-size // args.ranks)
            for _ in range(times):
                dist.all_gather_into_tensor(torch.zeros(own * args.ranks, dtype=weights),
                                            torch.zeros(own, dtype=weights))
            dist.reduce_scatter_tensor(torch.zeros(own), torch.zeros(own * args.ranks))

    result = {}
    for name, call in (("ddp", sum_gradients), ("fsdp", gather_and_scatter)):
        seconds = []
        for _ in range(1 + args.repeats):
            dist.barrier()
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
        result[name] = statistics.median(seconds[1:])
    print(json.dumps(result))


def child_command(args, child):
    return [sys.executable, __file__, "--official", args.official, "--layers", args.layers, "--ranks",
            args.ranks, "--batch", args.batch, "--precision", args.precision, "--repeats",
            args.repeats, "--warmup", args.warmup, "--child", child]


def run_official(args, child):
    """Seconds of a step."""
    with tempfile.TemporaryDirectory() as logs:
        clock = StepClock([f"{logs}/{rank}" for rank in range(args.ranks)])
        run_ranks(args, lambda rank: [*child_command(args, child), "--log", f"{logs}/{rank}"],
                  KEEP_FREED_MEMORY, together=child != "none", clock=clock)
        return median_step(args, clock)


def run_collectives(args, dtype):
    """Seconds of each kind, of the slowest rank."""
    command = child_command(args, f"collectives:{dtype}")
    printed = run_ranks(args, lambda rank: command, KEEP_FREED_MEMORY)
    of_ranks = [json.loads(text.strip().splitlines()[-1]) for text in printed]
    return {kind: max(seconds[kind] for seconds in of_ranks) for kind in of_ranks[0]}


# --- vgen ---


def write_codes(folder, count):
    """Random codes in LlamaGen's layout."""
    import numpy

    draw = numpy.random.default_rng(0)
    for kind in ("codes", "labels"):
        (folder / f"imagenet256_{kind}").mkdir(parents=True)
    for i in range(count):
        numpy.save(folder / f"imagenet256_codes/{i}.npy", draw.integers(16384, size=(1, 1, NUM_TOKENS)))
        numpy.save(folder / f"imagenet256_labels/{i}.npy", draw.integers(1000, size=(1,)))


def write_config(args, path, codes):
    path.write_text(f"""\
task: gpt
steps: {args.warmup + args.repeats}
precision: {args.precision}
device: cpu
threads: 1
log_every: 1
tensorboard: false
peak_tflops: 1  # not to be measured
model:
  {{n_layer: {args.layers}, n_head: 12, dim: 768, block_size: {NUM_TOKENS}, vocab_size: 16384,
    num_classes: 1000, token_dropout_p: 0.1, resid_dropout_p: 0.1, ffn_dropout_p: 0.1}}
optimizer: {{kind: adamw, lr: 1e-4, beta1: 0.9, beta2: 0.95, weight_decay: 0.05, decay_min_dims: 2}}
preview: {{num_images: 0}}
data: {{train: {codes}}}
checkpoint: {{keep_best: 0}}
""")


def run_vgen(args, config, strategy):
    """Seconds of a step, and the share of it in which a rank stood still for the others."""
    with tempfile.TemporaryDirectory() as runs:
        is_alone = strategy == "none"
        clock = StepClock([f"{runs}/{rank}/metrics.jsonl" for rank in range(args.ranks if is_alone else 1)])

        def command_of(rank):
            return [args.vgen, "train", config, "--run-dir", f"{runs}/{rank if is_alone else 0}",
                    "--set", f"parallel.strategy={strategy}", "--set",
                    f"global_batch_size={args.batch * (1 if is_alone else args.ranks)}"]

        run_ranks(args, command_of, {}, together=not is_alone, clock=clock)
        lines = pathlib.Path(f"{runs}/0/metrics.jsonl").read_text().splitlines()
        steps = [json.loads(line) for line in lines][args.warmup:]
        return (median_step(args, clock),
                statistics.median(step.get("train/comm_wait_share", 0) for step in steps))


def report(args, rounds):
    """rounds: of each a dict of what was measured. Returns the strategies that miss their goals."""
    def median(key):
        return statistics.median(each[key] for each in rounds)

    def speed(key):
        return f"{args.ranks * args.batch * NUM_TOKENS / median(key):.0f} tokens/s"

    def hidden(key, alone, collectives):
        return f"{1 - (median(key) - median(alone)) / median(collectives):.0%} hidden"

    def sent(kind, is_rounded):
        return f"{'bf16' if is_rounded and args.precision == 'bf16' else 'fp32'} {kind}"

    print(f"\n{args.ranks} ranks of one thread, GPT-B of {args.layers} layers, {args.batch} samples each, "
          f"{args.precision}, medians of {args.rounds} rounds")
    print(f"without communication: vgen {speed('vgen none')}, official {speed('official none')}")
    missed = []
    for strategy in args.strategies:
        key = f"vgen {strategy}"
        collectives = sent(strategy, strategy == "fsdp")
        waited = median(f"{key} waiting") * median(key)
        print(f"{key:20s} {speed(key):>15s}, {hidden(key, 'vgen none', collectives)} of "
              f"{median(collectives):.2f} s; it waited {waited:.2f} s, so that "
              f"{1 - waited / median(collectives):.0%} were hidden")
        peers = [f"official {peer}" for peer in PEERS[strategy]]
        for peer in peers:
            collectives = sent(strategy, peer.endswith("mixed"))
            print(f"{peer:20s} {speed(peer):>15s}, {hidden(peer, 'official none', collectives)} of "
                  f"{median(collectives):.2f} s")
        ratios = [min(each[peer] for peer in peers) / each[key] for each in rounds]
        middle = statistics.median(ratios)
        print(f"{strategy}: {', '.join(f'{ratio:.2f}' for ratio in ratios)} times as fast; least "
              f"{min(ratios):.2f}, median {middle:.2f}, largest {max(ratios):.2f}; goal {GOALS[strategy]}",
              flush=True)
        if middle < GOALS[strategy]:
            missed.append(strategy)
    return missed


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    root = pathlib.Path(__file__).resolve().parent.parent
    parser.add_argument("--official", type=pathlib.Path, required=True)
    parser.add_argument("--vgen", type=pathlib.Path, default=root / "build/release/apps/vgen")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--strategies", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--check", action="store_true", help="exit with 1 where a goal is missed")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--log", type=pathlib.Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.warmup < 1:
        parser.error(f"--warmup is {args.warmup}, expected 1 or more: the first step has none before it")
    if args.child:
        return time_collectives(args) if ":" in args.child else train_official(args)
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        write_codes(work / "codes", 2 * args.ranks * args.batch * (args.warmup + args.repeats))
        write_config(args, work / "gpt.yaml", work / "codes")
        rounds = []
        for number in range(args.rounds):
            measured = {}
            for dtype in ("fp32", "bf16"):
                for kind, seconds in run_collectives(args, dtype).items():
                    measured[f"{dtype} {kind}"] = seconds
            for strategy in ["none", *args.strategies]:
                key = f"vgen {strategy}"
                measured[key], measured[f"{key} waiting"] = run_vgen(args, work / "gpt.yaml", strategy)
                for peer in PEERS.get(strategy, ["none"]):
                    measured[f"official {peer}"] = run_official(args, peer)
            rounds.append(measured)
            print(f"round {number + 1}, seconds: " + ", ".join(
                f"{key} {value:.3f}" for key, value in measured.items() if "waiting" not in key)
                + "".join(f", {key} {value:.0%}" for key, value in measured.items()
                          if "waiting" in key), flush=True)
    missed = report(args, rounds)
    if args.check and missed:
        sys.exit(f"goal missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
