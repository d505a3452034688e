"""Triton kernels, each with a plain reference beside it."""

import triton


def unavailable(device) -> str:
    """Why the kernels cannot run on a device: a sentence, empty where they can."""
    if device.type == "cuda" or triton.knobs.runtime.interpret:
        return ""
    return "these kernels run on a GPU, or in Triton's interpreter: set TRITON_INTERPRET=1."
