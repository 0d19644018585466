"""What the benchmarks share: the official code's surroundings."""
import sys
import types

# Environment in which glibc keeps freed memory; vgen sets that by itself.
KEEP_FREED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "4294967296",
                     "MALLOC_TRIM_THRESHOLD_": "17179869184",
                     "MALLOC_TOP_PAD_": "67108864"}


def add_device(parser):
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])


def vgen_device(device):
    """The same of vgen."""
    return ["--device", device] + (["--allow-tf32"] if device == "cuda" else [])


def prepare(device, threads):
    """Threads, and on CUDA the TF32 that the official scripts allow. Returns what waits for the device."""
    import torch
    torch.set_num_threads(threads)
    if device == "cpu":
        return lambda: None
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    return torch.cuda.synchronize


def official_var_builder(path):
    """build_vae_var of the checkout at `path`. huggingface_hub, which VAR imports for a class that is
    not used, is replaced by an empty one."""
    sys.path[0] = str(path)  # instead of the folder of the script, which may hide its modules
    hub = types.ModuleType("huggingface_hub")

    class Nothing:
        def __init_subclass__(cls, **arguments):
            pass

    hub.PyTorchModelHubMixin = Nothing
    sys.modules["huggingface_hub"] = hub
    from models import build_vae_var

    return build_vae_var
