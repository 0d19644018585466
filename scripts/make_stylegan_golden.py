#!/usr/bin/env python3
"""Writes tests/golden/stylegan: what LlamaGen's StyleGAN discriminator says of two images of 32 x 32.

Usage: scripts/make_stylegan_golden.py --official PATH

PATH is a checkout of https://github.com/FoundationVision/LlamaGen. Weights and images are a hash of
their index (value()), so only results are kept: logits.npy (2, 1), and input_grad.npy (2, 3, 32, 32), the
gradient of their sum. Needs torch, numpy and kornia, whose filter2d the official code calls.
"""
import argparse
import pathlib
import sys

import numpy as np
import torch

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests/golden/stylegan"
IMAGE_TAG = 1000  # parameters have the tags 0, 1, ... in the order of named_parameters()


def value(shape, tag, scale):
    """The hash of tests/golden/lpips/meta.json, in [-scale, scale)."""
    h = np.arange(np.prod(shape), dtype=np.uint64) + 0x9E3779B9 * (tag + 1)
    h &= 0xFFFFFFFF
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        h ^= h >> np.uint64(shift)
        h = h * np.uint64(factor) & np.uint64(0xFFFFFFFF)
    unit = (h.astype(np.float64) / 4294967296.0 - 0.5) * 2
    return torch.from_numpy((unit * scale).astype(np.float32).reshape(shape))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--official", type=pathlib.Path, required=True)
    sys.path.insert(0, str(parser.parse_args().official))
    from tokenizer.tokenizer_image.discriminator_stylegan import Discriminator

    model = Discriminator(image_size=32)
    with torch.no_grad():
        for tag, (_, parameter) in enumerate(model.named_parameters()):
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 100
            parameter.copy_(value(tuple(parameter.shape), tag, (3 / fan_in) ** 0.5))
    image = value((2, 3, 32, 32), IMAGE_TAG, 1.0).requires_grad_()
    logits = model(image)
    logits.sum().backward()
    OUT.mkdir(parents=True, exist_ok=True)
    np.save(OUT / "logits.npy", logits.detach().numpy())
    np.save(OUT / "input_grad.npy", image.grad.numpy())
    print("logits", logits.detach().flatten().tolist(), "gradient", image.grad.norm().item())


if __name__ == "__main__":
    main()
