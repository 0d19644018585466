#!/usr/bin/env python3
"""Extraction of codes: vgen against LlamaGen's extract_codes_c2i.py, on the CPU, VQ-16 with random
weights, on the photos of data/photos.

Usage: benchmarks/extract.py --official PATH [--vgen build/release/apps/vgen] [--rounds 3]
           [--images 16] [--crops center_flip] [--image-size 256] [--batch-size 8] [--threads 2]
           [--precisions fp32 bf16]

PATH is a checkout of https://github.com/FoundationVision/LlamaGen; nothing of it is part of vgen.
Each measurement is a process of its own, the two sides take turns. Counted is the loop over the
images with reading, cropping and writing, without loading the model: the official one is its script's
loop (one image at a time, 2 DataLoader workers), for bf16 under autocast, which the script does not
do. It gets glibc's freed memory kept (MALLOC_* variables), which speeds it up; vgen sets that by
itself. Also compared are the codes that both write. Needs torch, torchvision, Pillow, numpy.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from common import KEEP_FREED_MEMORY


def center_crop(image, size):
    """The resizing and cut of guided-diffusion's ADM, which LlamaGen uses."""
    from PIL import Image

    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.BOX)
    ratio = size / min(image.size)
    image = image.resize((round(image.width * ratio), round(image.height * ratio)), Image.BICUBIC)
    x, y = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((x, y, x + size, y + size))


def official_model(args):
    import torch

    sys.path[0] = str(args.official)  # instead of the folder of this file, which hides `tokenizer`
    from tokenizer.tokenizer_image.vq_model import VQ_models

    torch.manual_seed(0)
    return VQ_models["VQ-16"](codebook_size=16384, codebook_embed_dim=8)


def run_official(args):
    """The loop of the official script; prints what the other process reads."""
    import numpy
    import torch
    from torchvision import datasets, transforms

    torch.set_num_threads(args.threads)
    model = official_model(args).eval()
    model.load_state_dict(torch.load(args.weights)["model"])
    to_float = transforms.ToTensor()
    normalize = transforms.Normalize([0.5] * 3, [0.5] * 3, inplace=True)
    if args.crops == "center_flip":
        transform = transforms.Compose(
            [lambda image: center_crop(image, args.image_size), to_float, normalize])
    else:
        square = int(args.image_size * float(args.crops.split(":")[1]))
        transform = transforms.Compose(
            [lambda image: center_crop(image, square), transforms.TenCrop(args.image_size),
             lambda crops: torch.stack([to_float(crop) for crop in crops]), normalize])
    dataset = datasets.ImageFolder(args.data, transform=transform)
    loader = torch.utils.data.DataLoader(dataset, batch_size=1, shuffle=False, num_workers=2)
    folder = pathlib.Path(args.out)
    for name in ["codes", "labels"]:
        (folder / f"imagenet{args.image_size}_{name}").mkdir(parents=True)
    begin = time.perf_counter()
    crops = 0
    for k, (x, y) in enumerate(loader):
        all_crops = x.flatten(0, 1) if x.dim() == 5 else torch.cat([x, x.flip(-1)])
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bf16"):
            _, _, (_, _, indices) = model.encode(all_crops)
        codes = indices.reshape(1, len(all_crops), -1)
        numpy.save(folder / f"imagenet{args.image_size}_codes/{k}.npy", codes.numpy())
        numpy.save(folder / f"imagenet{args.image_size}_labels/{k}.npy", y.numpy())
        crops += len(all_crops)
    seconds = time.perf_counter() - begin
    print(json.dumps({"crops_per_second": crops / seconds}))


def measure(command, environment):
    """What the process printed, its CPU time with that of its workers, its peak memory."""
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise subprocess.CalledProcessError(process.returncode, command)
    row = json.loads(printed[printed.index("{"):])
    row["cpu_seconds"] = usage.ru_utime + usage.ru_stime
    row["peak_mb"] = usage.ru_maxrss / 1024
    return row


def agreement(ours, theirs):
    """Share of equal codes between two folders in the official layout."""
    import numpy

    equal = total = 0
    for path in sorted(pathlib.Path(theirs).glob("*_codes/*.npy")):
        a, b = numpy.load(path), numpy.load(pathlib.Path(ours) / path.parent.name / path.name)
        assert a.shape == b.shape and a.dtype == b.dtype, (path, a.shape, b.shape)
        equal += int((a == b).sum())
        total += a.size
    return equal / total


def link_photos(folder, count):
    photos = sorted(pathlib.Path("data/photos").glob("*/*.jpg"))
    for i in range(count):
        photo = photos[i % len(photos)]
        target = folder / photo.parent.name
        target.mkdir(parents=True, exist_ok=True)
        (target / f"{i:05d}.jpg").symlink_to(photo.resolve())


def compare(args, precision, temp):
    import torch

    weights, photos = temp / "vq16.pt", temp / "photos"
    if not weights.exists():
        torch.save({"model": official_model(args).state_dict()}, weights)
        link_photos(photos, args.images)
    environment = dict(os.environ, OMP_NUM_THREADS=str(args.threads))
    rows = {"official": [], "vgen": []}
    for round_number in range(args.rounds):
        out = temp / f"{precision}_{round_number}"
        flags = ["--official", args.official, "--crops", args.crops, "--image-size",
                 str(args.image_size), "--threads", str(args.threads)]
        rows["official"].append(measure(
            [sys.executable, __file__, *flags, "--side", "official", "--data", str(photos), "--out",
             f"{out}/official", "--weights", str(weights), "--precision", precision],
            environment | KEEP_FREED_MEMORY))
        rows["vgen"].append(measure(
            [args.vgen, "extract", str(weights), str(photos), *flags[2:], "--out", f"{out}/vgen",
             "--official-layout", f"{out}/flip", "--batch-size", str(args.batch_size),
             "--precision", precision, "--device", "cpu", "--workers", "2", "--json"], environment))
        print(f"{precision} round {round_number + 1}: " + "; ".join(
            f"{side} {row[-1]['crops_per_second']:.3g} crops/s, {row[-1]['cpu_seconds']:.1f} s of CPU, "
            f"{row[-1]['peak_mb']:.0f} MB"
            for side, row in rows.items()), flush=True)
    median = {side: statistics.median(row["crops_per_second"] for row in list_)
              for side, list_ in rows.items()}
    ratio = statistics.median(ours["crops_per_second"] / theirs["crops_per_second"]
                              for ours, theirs in zip(rows["vgen"], rows["official"]))
    same = agreement(f"{out}/flip", f"{out}/official")
    print(f"{precision} median: official {median['official']:.3g} crops/s, vgen {median['vgen']:.3g} "
          f"crops/s, ratio {ratio:.2f}; {100 * same:.2f} % of the codes are equal", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", required=True)
    parser.add_argument("--vgen", default="build/release/apps/vgen")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--crops", default="center_flip", help="center_flip or ten_crop:RANGE")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    for name in ["--side", "--data", "--out", "--weights", "--precision"]:
        parser.add_argument(name, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.official = str(pathlib.Path(args.official).resolve())
    if args.side == "official":
        run_official(args)
        return
    with tempfile.TemporaryDirectory() as temp:
        for precision in args.precisions:
            compare(args, precision, pathlib.Path(temp))


if __name__ == "__main__":
    main()
