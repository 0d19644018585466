#!/usr/bin/env python3
"""Writes tests/golden/sampler/cases.txt: what PyTorch's DistributedSampler (shuffle=False) gives to
each rank. Needs torch. Usage: scripts/make_sampler_golden.py

One line each: SIZE WORLD RANK TAIL INDEX..., TAIL = pad (drop_last=False) or drop (drop_last=True).
"""
import pathlib

from torch.utils.data import DistributedSampler

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests/golden/sampler"


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    lines = []
    for size in (1, 2, 3, 7, 8, 10, 13):
        for world in (1, 2, 3, 4, 5, 8):
            for rank in range(world):
                for tail in ("pad", "drop"):
                    if tail == "drop" and size < world:
                        continue  # vgen refuses a rank without samples
                    sampler = DistributedSampler(range(size), world, rank, shuffle=False,
                                                 drop_last=tail == "drop")
                    lines.append(" ".join(map(str, [size, world, rank, tail, *sampler])))
    (OUT / "cases.txt").write_text("\n".join(lines) + "\n")
    print(f"{len(lines)} cases")


if __name__ == "__main__":
    main()
