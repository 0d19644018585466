#!/usr/bin/env python3
"""Data loading: vgen against torchvision's ImageFolder and PyTorch's DataLoader, on the same files with
the same work: JPEG decode, LlamaGen's random crop, flip, normalise, batches of float32.

Usage: benchmarks/loader.py [--vgen build/release/apps/vgen] [--rounds 3] [--workers 2]
                            [--photos data/photos] [--copies 64] [--seconds 5]
       benchmarks/loader.py --make-large FOLDER [--photos data/photos]

The data is `copies` copies of every photo, as files of their own. The two sides take turns; medians
and ratios are printed, in images/s and in processor time of all processes and threads (which other
programs on the machine disturb less). Needs torch, torchvision and Pillow.

--make-large writes every photo at four times its side into a new flat folder, and measures nothing: data
for `vgen data bench FOLDER --layout flat`, with and without --decode-scale. Needs Pillow alone.
"""
import argparse
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time

CROP = 256
BATCH = 32


def random_crop(image):
    """LlamaGen's random crop: shorter side to 256..320, box halving first, bicubic, cut."""
    from PIL import Image

    target = random.randint(CROP, 320)
    while min(image.size) >= 2 * target:
        image = image.resize((image.width // 2, image.height // 2), Image.BOX)
    ratio = target / min(image.size)
    image = image.resize((round(image.width * ratio), round(image.height * ratio)), Image.BICUBIC)
    x = random.randint(0, image.width - CROP)
    y = random.randint(0, image.height - CROP)
    return image.crop((x, y, x + CROP, y + CROP))


def cpu_seconds():
    """Of this process and its workers."""
    ticks = 0
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(path.parent.name) == os.getpid() or int(fields[1]) == os.getpid():
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def torchvision_rate(folder, workers, seconds):
    import torch
    from torchvision import datasets, transforms

    dataset = datasets.ImageFolder(folder, transform=transforms.Compose([
        transforms.Lambda(random_crop),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize([0.5] * 3, [0.5] * 3, inplace=True),
    ]))
    loader = torch.utils.data.DataLoader(dataset, batch_size=BATCH, shuffle=True, drop_last=True,
                                         num_workers=workers, persistent_workers=True)

    def endless():
        while True:
            yield from loader

    batches = endless()
    for _ in range(4 * workers):  # start-up and what is prefetched do not count
        next(batches)
    images, begin, cpu = 0, time.perf_counter(), cpu_seconds()
    while time.perf_counter() - begin < seconds:
        images += next(batches)[0].shape[0]
    elapsed, cpu = time.perf_counter() - begin, cpu_seconds() - cpu
    return {"images_per_second": images / elapsed, "cpu_ms_per_image": 1e3 * cpu / images}


def make_large(photos, folder):
    from PIL import Image

    target = pathlib.Path(folder)
    target.mkdir(parents=True)
    paths = sorted(pathlib.Path(photos).glob("*/*.jpg"))
    for path in paths:
        image = Image.open(path).convert("RGB")
        image = image.resize((4 * image.width, 4 * image.height), Image.BICUBIC)
        image.save(target / path.name, quality=90)
    size = sum(path.stat().st_size for path in target.iterdir())
    print(f"{folder}: {len(paths)} photos at four times the side, {size / 2**20:.1f} MiB")


def run_json(command):
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def vgen_rate(vgen, folder, workers, seconds):
    return run_json([vgen, "data", "bench", folder, "--workers", str(workers), "--batch-size",
                     str(BATCH), "--image-size", str(CROP), "--seconds", str(seconds), "--json"])


def python_rate(folder, workers, seconds):
    """In a process of its own, so that nothing of it is left while vgen runs."""
    return run_json([sys.executable, __file__, "--python-side", folder, "--workers", str(workers),
                     "--seconds", str(seconds)])


def show(results):
    rate = statistics.median(r["images_per_second"] for r in results)
    cpu = statistics.median(r["cpu_ms_per_image"] for r in results)
    return f"{rate:.1f} images/s, {cpu:.2f} ms of CPU each"


def ratios(theirs, ours):
    rate = statistics.median(o["images_per_second"] / t["images_per_second"]
                             for o, t in zip(ours, theirs))
    cpu = statistics.median(t["cpu_ms_per_image"] / o["cpu_ms_per_image"]
                            for o, t in zip(ours, theirs))
    return f"ratio {rate:.2f} in images/s, {cpu:.2f} in CPU"


def main():
    root = pathlib.Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser()
    parser.add_argument("--vgen", default=str(root / "build/release/apps/vgen"))
    parser.add_argument("--photos", default=str(root / "data/photos"))
    parser.add_argument("--copies", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--make-large", metavar="FOLDER")
    parser.add_argument("--python-side", metavar="FOLDER", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.python_side:
        print(json.dumps(torchvision_rate(args.python_side, args.workers, args.seconds)))
        return
    if args.make_large:
        make_large(args.photos, args.make_large)
        return

    import PIL
    import torch
    import torchvision

    with tempfile.TemporaryDirectory() as folder:
        count = 0
        for photo in sorted(pathlib.Path(args.photos).glob("*/*.jpg")):
            (pathlib.Path(folder) / photo.parent.name).mkdir()
            for copy in range(args.copies):
                target = pathlib.Path(folder) / photo.parent.name / f"{copy:05d}.jpg"
                target.write_bytes(photo.read_bytes())
                count += 1
        print(f"{count} JPEGs, crop {CROP}, batch {BATCH}, {args.workers} workers, {os.cpu_count()} "
              f"cores; torch {torch.__version__}, torchvision {torchvision.__version__}, "
              f"Pillow {PIL.__version__}")
        theirs, ours = [], []
        for round_ in range(args.rounds):
            theirs.append(python_rate(folder, args.workers, args.seconds))
            ours.append(vgen_rate(args.vgen, folder, args.workers, args.seconds))
            print(f"round {round_ + 1}: torchvision {show(theirs[-1:])}; vgen {show(ours[-1:])}; "
                  f"{ratios(theirs[-1:], ours[-1:])}", flush=True)
    print(f"median: torchvision {show(theirs)}; vgen {show(ours)}; {ratios(theirs, ours)}")


if __name__ == "__main__":
    main()
