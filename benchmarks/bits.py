"""The same bits twice: each kernel, and a step of training on them, where PyTorch is deterministic.

    python -m benchmarks.bits [--times 10] [--toy]

In bfloat16, at a size that fills a GPU. --toy: small, on the CPU: the kernels in float32, in
Triton's interpreter, and the step of training on PyTorch's own operations instead of them.
"""

import os
from collections.abc import Callable

import torch
from torch import Tensor

from data import cli
from nanogpt.gpt import ARCHS, GPT


def gradients(function: Callable, *inputs: Tensor) -> list[Tensor]:
    """What a function gives, and the gradients of its sum."""
    out = function(*inputs)
    out = out[0] if isinstance(out, tuple) else out
    return [out.detach(), *torch.autograd.grad(out.float().sum(), inputs)]


def jobs(toy: bool) -> dict[str, Callable[[], list[Tensor]]]:
    """Each gives all that is to repeat."""
    from kernels import attention, cross_entropy, norm, rotary  # late: --toy chooses how they run

    device, dtype = ("cpu", torch.float32) if toy else ("cuda", torch.bfloat16)
    B, H, T, D = (1, 2, 32, 16) if toy else (4, 16, 4096, 128)
    N, C, V = (24, 16, 65) if toy else (16384, 768, 50304)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype).requires_grad_()

    q, k, v = draw(B, H, T, D), draw(B, H // 2, T, D), draw(B, H // 2, T, D)
    segments = torch.arange(T, device=device).expand(B, T) // (T // 3)
    x, y, weight, head = draw(N, C), draw(N, C), draw(C), draw(V, C)
    targets = torch.randint(V, (N,), device=device)
    positions = torch.arange(T, device=device).expand(B, T)
    long = [torch.randn(B, H, S, D, device=device, dtype=dtype) for S in (1, 2 * T + 512)]
    options = dict(causal=True, window=T // 2, segments=segments, dropout=0.1, seed=1)
    sizes = dict(layers=2, heads=2, width=16 if toy else 256)
    torch.manual_seed(0)
    model = GPT(V, T // 4, **sizes, **(ARCHS["modern"] | dict(zero_init=False))).to(device)
    if not toy:
        model.attention, model.fused_loss = "triton", True
    tokens = torch.randint(V, (4, T // 4), device=device)

    def step() -> list[Tensor]:
        with torch.autocast(device, torch.bfloat16):
            loss = model.loss(tokens, tokens.roll(-1, 1))
        return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]

    return {
        "attention": lambda: gradients(lambda *x: attention(*x, causal=True), q, k, v),
        "attention, all of it": lambda: gradients(lambda *x: attention(*x, **options), q, k, v),
        "decoding": lambda: [attention(long[0], long[1], long[1])],
        "loss": lambda: gradients(
            lambda *x: cross_entropy.linear_cross_entropy(*x, targets, cap=15.0), x, head),
        "norm": lambda: gradients(lambda *x: norm.add_rms_norm(*x, eps=1e-6)[1], x, y, weight),
        "rotary": lambda: gradients(lambda x: rotary.rotary(x, positions), q),
        "a step of training": step,
    }


def main() -> None:
    title = __doc__.split("\n")[0]
    parser = cli.Parser(prog="python -m benchmarks.bits", description=title)
    parser.add_argument("--times", type=int, default=10, metavar="N", help="default 10")
    parser.add_argument("--toy", action="store_true", help="a toy size, on the CPU")
    args = parser.parse_args()
    if args.times < 2:
        raise ValueError(f"--times must be at least 2, not {args.times}.")
    if args.toy:
        os.environ["TRITON_INTERPRET"] = "1"
    elif not torch.cuda.is_available():
        raise ValueError("there is no GPU here; try --toy.")
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # which that mode asks for
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(0)
    others = []
    for name, job in jobs(args.toy).items():
        first = job()
        same = all(torch.equal(a, b) for _ in range(1, args.times) for a, b in zip(first, job()))
        print(f"{name}: {'the same bits' if same else 'OTHER BITS'}, {args.times} times")
        others += [] if same else [name]
    if others:
        raise ValueError(f"not the same bits every time: {', '.join(others)}.")


if __name__ == "__main__":
    cli.run(main)
