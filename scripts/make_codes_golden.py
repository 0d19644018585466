#!/usr/bin/env python3
"""Makes tests/golden/official_codes and tests/golden/ten_crop.

official_codes: code files as LlamaGen's extract_codes_c2i.py writes them, with numpy.save.
ten_crop: crops by torchvision and Pillow of two images, for the extraction of codes.

Needs: pip install numpy 'pillow<13' torch torchvision
Usage: scripts/make_codes_golden.py tests/golden
"""

import os
import sys

import numpy as np
from PIL import Image
from torchvision import transforms


def official_codes(root):
    for second, name in enumerate(["vq_flip_ten_crop", "vq_flip_ten_crop_105"]):
        codes = os.path.join(root, name, "imagenet32_codes")
        labels = os.path.join(root, name, "imagenet32_labels")
        os.makedirs(codes, exist_ok=True)
        os.makedirs(labels, exist_ok=True)
        for k in [0, 1, 10]:
            x = 1000 * k + np.arange(40).reshape(1, 10, 4) + 500 * second
            np.save(f"{codes}/{k}.npy", x.astype(np.int64))
            np.save(f"{labels}/{k}.npy", np.array([7 * k], dtype=np.int64))


def shorter_side(image, size):
    """The resizing of guided-diffusion's centre crop: halve with BOX, then BICUBIC."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.BOX)
    scale = size / min(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.BICUBIC)


def center_crop(image, size):
    array = np.array(shorter_side(image, size))
    y, x = (array.shape[0] - size) // 2, (array.shape[1] - size) // 2
    return Image.fromarray(array[y : y + size, x : x + size])


def ten_crop(root):
    os.makedirs(root, exist_ok=True)
    rng = np.random.default_rng(0)
    for i, (height, width) in enumerate([(37, 53), (71, 40)]):
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        np.save(f"{root}/rgb_{i}.npy", pixels)
        image = Image.fromarray(pixels)
        for size, crop_range in [(16, 1.1), (16, 1.05), (20, 1.3)]:
            square = center_crop(image, int(size * crop_range))
            crops = [np.array(crop) for crop in transforms.TenCrop(size)(square)]
            np.save(f"{root}/crops_{i}_{size}_{crop_range}.npy", np.stack(crops))


if __name__ == "__main__":
    official_codes(os.path.join(sys.argv[1], "official_codes"))
    ten_crop(os.path.join(sys.argv[1], "ten_crop"))
