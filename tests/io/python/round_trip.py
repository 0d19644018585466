"""Proves that Python opens what `vgen convert` writes, bit for bit.

Usage: round_trip.py VGEN GOLDEN_FOLDER. Exit code 77: skipped, there is no torch.
"""

import json
import pathlib
import struct
import subprocess
import sys
import tempfile

try:
    import numpy
    import torch
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)

SAFETENSORS_DTYPES = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16",
    torch.int32: "I32", torch.int64: "I64", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float32: "F32", torch.float64: "F64", torch.uint16: "U16", torch.uint32: "U32",
    torch.uint64: "U64", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
}


def bits(tensor):
    tensor = tensor.detach().contiguous().reshape(-1)
    return tensor.view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and bits(a) == bits(b)


def read_safetensors(path):
    """By the format description alone: no library that could share a mistake."""
    raw = path.read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    assert size % 8 == 0 and raw[8:9] == b"{", "header"
    header = json.loads(raw[8 : 8 + size])
    data = raw[8 + size :]
    assert header.pop("__metadata__")["format"] == "pt"
    end = 0
    for entry in sorted(header.values(), key=lambda entry: entry["data_offsets"]):
        assert entry["data_offsets"][0] == end, "the tensors leave a gap"
        end = entry["data_offsets"][1]
    assert end == len(data), "bytes after the last tensor"
    return {
        name: (entry["dtype"], entry["shape"], data[slice(*entry["data_offsets"])])
        for name, entry in header.items()
    }


def check(vgen, expected, source, folder, options):
    """source -> .safetensors -> .pt, each compared with `expected`: name -> tensor."""
    safetensors, pt = folder / "a.safetensors", folder / "b.pt"
    for arguments in ([source, safetensors, *options], [safetensors, pt]):
        subprocess.run([vgen, "convert", "--force", *arguments], check=True, capture_output=True)
    written = read_safetensors(safetensors)
    assert written.keys() == expected.keys(), source
    for name, (dtype, shape, data) in written.items():
        tensor = expected[name]
        assert (dtype, shape) == (SAFETENSORS_DTYPES[tensor.dtype], list(tensor.shape)), name
        assert data == bits(tensor), name
    for mmap in (False, True):
        loaded = torch.load(pt, weights_only=True, mmap=mmap)
        assert loaded.keys() == expected.keys(), source
        assert all(same(loaded[name], expected[name]) for name in expected), source


def main():
    vgen, golden = sys.argv[1], pathlib.Path(sys.argv[2])
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        # A file of this Python: every dtype, views, tied weights, empty and 0-d tensors.
        base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
        tensors = {
            str(dtype).removeprefix("torch."): torch.arange(6).reshape(2, 3).to(dtype)
            for dtype in SAFETENSORS_DTYPES
        }
        tensors |= {"base": base, "t": base.t(), "part": base[1:, 2:4], "tied": base,
                    "scalar": torch.tensor(3.0), "none": torch.zeros(0, 3), "step": base[0, 1]}
        torch.save({"model": tensors, "steps": 3}, folder / "all.pt")
        check(vgen, tensors, folder / "all.pt", folder, [])
        tied = torch.load(folder / "b.pt", weights_only=True)
        assert tied["scalar"].dim() == 0
        # Files of the golden set, in the layouts of published checkpoints.
        for name, key in (("ckpt_llamagen", "model"), ("ckpt_llamagen", "ema"),
                          ("ckpt_var", "trainer.vae_local"), ("state_dict", "")):
            source = golden / "valid" / f"{name}.pt"
            import argparse

            with torch.serialization.safe_globals([argparse.Namespace]):
                expected = torch.load(source, weights_only=True, map_location="cpu")
            for part in filter(None, key.split(".")):
                expected = expected[part]
            check(vgen, expected, source, folder, ["--key", key] if key else [])
        # NumPy reads the .npz, and vgen reads what NumPy deflates.
        numbers = {"a": numpy.arange(6.0).reshape(2, 3), "b": numpy.ones((70000,), numpy.uint8)}
        numpy.savez_compressed(folder / "in.npz", **numbers)
        subprocess.run([vgen, "convert", folder / "in.npz", folder / "out.npz"], check=True,
                       capture_output=True)
        with numpy.load(folder / "out.npz", allow_pickle=False) as back:
            assert all(numpy.array_equal(back[name], numbers[name]) for name in numbers)
    print("round trip: all equal")


main()
