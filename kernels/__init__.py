"""Fused kernels in Triton, each beside its plain reference, and usable from any PyTorch code.

naive.py says what attention is, online.py how it is had without its matrix, attention.py does that
on a GPU, decode.py for the few queries of generation, operator.py makes it an operator of PyTorch.
"""

import torch

try:
    # Triton is an optional extra. Modules and functions share names here: the function is bound
    # last, so that kernels.attention is callable, and `from kernels.attention import ...` the file.
    from .operator import attention, unavailable
except ModuleNotFoundError as error:
    if (error.name or "").split(".")[0] != "triton":
        raise

    def unavailable(device) -> str:
        return "Triton is not installed: pip install 'triton>=3.6', on Linux."

    def attention(q, k, v, **options):
        raise ValueError(unavailable(None))


def available(device: str | torch.device) -> bool:
    """Whether the kernels run on a device; unavailable(device) says why not."""
    return not unavailable(torch.device(device))
