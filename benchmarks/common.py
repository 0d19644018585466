"""What the benchmarks share: the official code's surroundings."""
import sys
import types

# Environment in which glibc keeps freed memory; vgen sets that by itself.
KEEP_FREED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "4294967296",
                     "MALLOC_TRIM_THRESHOLD_": "17179869184",
                     "MALLOC_TOP_PAD_": "67108864"}


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
