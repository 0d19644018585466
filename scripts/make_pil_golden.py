#!/usr/bin/env python3
"""Writes tests/golden/pil_photos: what Pillow makes of the photos in data/ and of small files in
every format that a dataset may hold. Needs numpy and Pillow 12 or older (13 resizes some tall images
in another order). Usage: scripts/make_pil_golden.py

cases.txt, one line each, paths below the project; hash = FNV-1a 64 of the RGB bytes:
  decode FILE WIDTH HEIGHT HASH
  resize FILE FILTER WIDTH HEIGHT HASH
  center_crop FILE SIZE HASH
  var_center_crop FILE SIZE HASH
"""
import io
import pathlib
import struct
import zlib

import numpy as np
import PIL
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = ROOT / "tests/golden/pil_photos"
FILTERS = {"box": Image.BOX, "bicubic": Image.BICUBIC, "lanczos": Image.LANCZOS}


def fnv(data):
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{value:016x}"


def png(pixels, dtype, passes):
    """RGB, from what Pillow reads but does not write."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(dtype).tobytes()
                    for x, y, dx, dy in passes for row in pixels[y::dy, x::dx])

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    depth = 8 * np.dtype(dtype).itemsize
    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, int(len(passes) > 1))
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) +
            chunk(b"IEND", b""))


WHOLE = [(0, 0, 1, 1)]
ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
         (0, 1, 1, 2)]


def small_files():
    """One image of 41 x 31 in every format and mode."""
    photo = Image.open(ROOT / "data/photos/chelsea/chelsea.jpg").convert("RGB")
    rgb = photo.crop((150, 80, 355, 235)).resize((41, 31), Image.BICUBIC)
    alpha = np.array(rgb.convert("RGBA"))
    alpha[..., 3] = np.arange(41) * 6
    rgba = Image.fromarray(alpha)
    exif = Image.Exif()
    exif[0x112] = 6
    files = {
        "rgb_444.jpg": (rgb, dict(format="JPEG", subsampling=0, quality=85)),
        "rgb_422.jpg": (rgb, dict(format="JPEG", subsampling=1, quality=85)),
        "rgb_420.jpg": (rgb, dict(format="JPEG", subsampling=2, quality=85)),
        "progressive.jpg": (rgb, dict(format="JPEG", progressive=True)),
        "grey.jpg": (rgb.convert("L"), dict(format="JPEG")),
        "cmyk.jpg": (rgb.convert("CMYK"), dict(format="JPEG")),
        "exif_rotated.jpg": (rgb, dict(format="JPEG", exif=exif)),
        "png_named.jpg": (rgb, dict(format="PNG")),
        "exif_rotated.png": (rgb, dict(format="PNG", exif=exif)),
        "grey.png": (rgb.convert("L"), dict(format="PNG")),
        "bilevel.png": (rgb.convert("1"), dict(format="PNG")),
        "grey_alpha.png": (rgba.convert("LA"), dict(format="PNG")),
        "alpha.png": (rgba, dict(format="PNG")),
        "palette.png": (rgb.quantize(64), dict(format="PNG")),
        "palette_transparent.png": (rgb.quantize(16), dict(format="PNG", transparency=3)),
        "lossy.webp": (rgb, dict(format="WEBP", quality=80)),
        "lossless_alpha.webp": (rgba, dict(format="WEBP", lossless=True)),
        "rgb.bmp": (rgb, dict(format="BMP")),
        "palette.bmp": (rgb.quantize(16), dict(format="BMP")),
        "rgb.ppm": (rgb, dict(format="PPM")),
        "grey.pgm": (rgb.convert("L"), dict(format="PPM")),
        "lzw.tif": (rgb, dict(format="TIFF", compression="tiff_lzw")),
    }
    for name, (image, options) in files.items():
        buffer = io.BytesIO()
        image.save(buffer, **options)
        (OUT / name).write_bytes(buffer.getvalue())
    deep = np.random.default_rng(0).integers(0, 65536, (7, 9, 3))
    (OUT / "rgb16.png").write_bytes(png(deep, ">u2", WHOLE))
    (OUT / "interlaced.png").write_bytes(png(np.array(rgb), "u1", ADAM7))
    return sorted([*files, "rgb16.png", "interlaced.png"])


def center_crop(image, size):
    """LlamaGen's rule, written from docs/data.md."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.BOX)
    ratio = size / min(image.size)
    image = image.resize((round(image.width * ratio), round(image.height * ratio)), Image.BICUBIC)
    x, y = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((x, y, x + size, y + size))


def var_center_crop(image, size):
    mid = round(1.125 * size)
    short, long = min(image.size), max(image.size)
    longer = int(mid * long / short)
    image = image.resize((mid, longer) if image.width <= image.height else (longer, mid), Image.LANCZOS)
    x, y = round((image.width - size) / 2), round((image.height - size) / 2)
    return image.crop((x, y, x + size, y + size))


def main():
    assert int(PIL.__version__.split(".")[0]) <= 12, f"Pillow {PIL.__version__}: install pillow<13"
    OUT.mkdir(parents=True, exist_ok=True)
    lines = []

    def case(kind, file, *args, image):
        lines.append(" ".join([kind, file, *map(str, args), fnv(image.tobytes())]))

    for name in small_files():
        file = f"tests/golden/pil_photos/{name}"
        image = Image.open(ROOT / file).convert("RGB")
        case("decode", file, *image.size, image=image)
    for path in sorted((ROOT / "data/photos").glob("*/*.jpg")):
        file = str(path.relative_to(ROOT))
        image = Image.open(path).convert("RGB")
        case("decode", file, *image.size, image=image)
        for kind, size in [("bicubic", (300, 301)), ("lanczos", (288, 160)), ("box", (128, 127)),
                           ("bicubic", (700, 64)), ("lanczos", (33, 600)), ("box", (17, 512))]:
            case("resize", file, kind, *size, image=image.resize(size, FILTERS[kind]))
        for size in (64, 200, 256, 300):
            case("center_crop", file, size, image=center_crop(image, size))
            case("var_center_crop", file, size, image=var_center_crop(image, size))
    (OUT / "cases.txt").write_text("\n".join(lines) + "\n")
    print(f"{len(lines)} cases with Pillow {PIL.__version__}")


if __name__ == "__main__":
    main()
