"""The small kernels beside plain PyTorch, in float64 too, and as operators."""

import itertools
import os

import pytest
import torch
from torch.library import opcheck

pytest.importorskip("triton", reason="the kernels need Triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":  # as in conftest.py: before they are imported
    os.environ["TRITON_INTERPRET"] = "1"

from kernels import cross_entropy, norm, rotary  # noqa: E402
from kernels.cross_entropy import linear_cross_entropy, linear_cross_entropy_sum  # noqa: E402
from kernels.norm import add_rms_norm  # noqa: E402
from makemore.transformer import rotary_frequencies, rotate  # noqa: E402
from nanogpt.gpt import GPT  # noqa: E402

os.environ.pop("TRITON_INTERPRET", None)  # the tests that launch kernels ask again
pytestmark = pytest.mark.usefixtures("interpreter")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def draw(*shape, dtype=torch.float32, seed=0, scale=1.0):
    """Normal numbers in dtype, which ask for their gradient."""
    generator = torch.Generator().manual_seed(seed)
    values = scale * torch.randn(*shape, generator=generator)
    return values.to(DEVICE, dtype).requires_grad_()


def measured(function, inputs, rest):
    """Its outputs, and the gradients by the inputs of a sum of them with weights."""
    outputs = function(*inputs, **rest)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    total = sum(
        (out.double() * torch.linspace(-1, 1, out.numel(), device=DEVICE).view(out.shape)).sum()
        if out.ndim else 3 * out.double() for out in outputs
    )
    return *outputs, *torch.autograd.grad(total, [x for x in inputs if x is not None])


def agrees(function, reference, inputs, **rest):
    """Errors at most twice those of PyTorch in the same precision, by float64, and a quarter unit.

    The unit is that of the largest number's last place: where few are drawn PyTorch may be lucky.
    """
    exact = [None if x is None else x.detach().double().requires_grad_() for x in inputs]
    exact = measured(reference, exact, {k: v for k, v in rest.items() if k != "chunk"})
    plain = measured(reference, inputs, {k: v for k, v in rest.items() if k != "chunk"})
    ours = measured(function, inputs, rest)
    for mine, theirs, true in zip(ours, plain, exact, strict=True):
        assert mine.dtype == theirs.dtype and mine.shape == theirs.shape
        error, allowed = (mine - true).abs().max(), (theirs - true).abs().max()
        unit = torch.finfo(mine.dtype).eps * true.abs().max()
        assert error <= 2 * allowed + unit / 4 + 1e-6, (error, allowed)


@pytest.fixture
def poisoned(monkeypatch):
    """Memory that nobody has written holds NaN."""
    for name in ("empty", "empty_like"):
        make = getattr(torch, name)

        def poison(*shape, make=make, **options):
            made = make(*shape, **options)
            return made.fill_(torch.nan) if made.is_floating_point() else made

        monkeypatch.setattr(torch, name, poison)


# the loss

LOSSES = {  # N, V, C, chunk: one of each, borders of blocks and chunks, wide
    "one": (1, 1, 1, 0), "small": (5, 65, 8, 2), "border": (6, 256, 16, 3), "odd": (7, 257, 12, 4),
    "two blocks": (3, 4097, 8, 0), "wide": (3, 9000, 4, 2),
}


def targets_of(N, V, seed=1):
    """Some of them ignored, the first and the last token among the others."""
    targets = torch.randint(V, (N,), generator=torch.Generator().manual_seed(seed))
    targets[N // 2:] = V - 1
    targets[1::3] = -1
    return targets.to(DEVICE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cap", (0.0, 3.0))
@pytest.mark.parametrize("sizes", LOSSES.values(), ids=LOSSES)
def test_loss(sizes, cap, dtype, poisoned):
    N, V, C, chunk = sizes
    inputs = draw(N, C, dtype=dtype, scale=2), draw(V, C, dtype=dtype, seed=2)
    options = dict(targets=targets_of(N, V), cap=cap, chunk=chunk)
    agrees(linear_cross_entropy, cross_entropy.reference, inputs, **options)


def test_loss_is_that_of_gpt():
    model = GPT(50, 8, layers=1, heads=2, width=16, zero_init=False).to(DEVICE)
    tokens = torch.randint(50, (3, 8), device=DEVICE)
    targets = targets_of(24, 50).view(3, 8)
    expected = model.loss(tokens, targets)
    x, _ = model.features(tokens)
    loss = linear_cross_entropy(
        x.flatten(0, 1), model.head.weight, targets.flatten(), cap=model.logit_cap
    )
    torch.testing.assert_close(loss, expected)
    weights = list(model.parameters())
    ours, theirs = (torch.autograd.grad(each, weights) for each in (loss, expected))
    torch.testing.assert_close(ours, theirs)


def test_loss_of_large_logits():
    x, weight = draw(4, 8, scale=300), draw(70, 8, seed=2, scale=30)
    targets = torch.tensor([0, 69, -1, 5], device=DEVICE)
    agrees(linear_cross_entropy, cross_entropy.reference, (x, weight), targets=targets)


def test_loss_where_all_is_ignored():
    x, weight = draw(3, 4), draw(9, 4)
    loss = linear_cross_entropy(x, weight, torch.full((3,), -1, device=DEVICE))
    loss.backward()
    assert loss.item() == 0 and not x.grad.any() and not weight.grad.any()


def test_loss_of_no_tokens():
    weight = draw(9, 4)
    loss = linear_cross_entropy(draw(0, 4), weight, torch.zeros(0, dtype=int, device=DEVICE))
    loss.backward()
    assert loss.item() == 0 and not weight.grad.any()


@pytest.mark.parametrize("wrong", (-2, 9, 2**40))
def test_loss_of_a_target_that_is_none(wrong):
    targets = torch.tensor([1, wrong, 3], device=DEVICE)
    assert linear_cross_entropy(draw(3, 4), draw(9, 4), targets).isnan()


def test_loss_by_chunks_of_any_size():
    x, weight, targets = draw(33, 8), draw(40, 8, seed=2), targets_of(33, 40)
    whole = measured(linear_cross_entropy, (x, weight), dict(targets=targets, chunk=33))
    for chunk in (1, 16, 32, 1000):
        parts = measured(linear_cross_entropy, (x, weight), dict(targets=targets, chunk=chunk))
        torch.testing.assert_close(parts, whole)


@pytest.mark.parametrize("frozen", ("x", "weight", "both"))
def test_loss_where_some_gradients_are_not_wanted(frozen):
    x, weight, targets = draw(6, 8), draw(40, 8, seed=2), targets_of(6, 40)
    expected = measured(linear_cross_entropy, (x, weight), dict(targets=targets))
    for name, each in (("x", x), ("weight", weight)):
        each.requires_grad_(frozen not in (name, "both"))
    loss = linear_cross_entropy(x, weight, targets)
    assert torch.equal(loss, expected[0]) and loss.requires_grad == (frozen != "both")
    wanted = [each for each in (x, weight) if each.requires_grad]
    for gradient in torch.autograd.grad(3 * loss, wanted) if wanted else ():
        assert any(torch.equal(gradient, other) for other in expected[1:])


def test_loss_under_autocast_keeps_the_gradient_of_the_weight_in_float32():
    x, weight, targets = draw(9, 8), draw(40, 8, seed=2), targets_of(9, 40)
    with torch.autocast(DEVICE, torch.bfloat16):
        loss = linear_cross_entropy(x, weight, targets)
    loss.backward()
    assert loss.dtype == x.grad.dtype == weight.grad.dtype == torch.float32
    half = x.detach().bfloat16(), weight.detach().bfloat16()
    agrees(linear_cross_entropy, cross_entropy.reference,
           [each.requires_grad_() for each in half], targets=targets)
    assert (weight.grad != weight.grad.bfloat16()).any()


def test_small_gradients_of_the_loss_in_float16_survive_as_scaled():
    """The mean over many tokens is a small factor: it may not make zeros before the scaler acts."""
    x, weight = draw(512, 4, dtype=torch.float16), draw(3000, 4, dtype=torch.float16, scale=1e-3)
    targets = torch.zeros(512, dtype=torch.int64, device=DEVICE)
    gradient = torch.autograd.grad(2**14 * linear_cross_entropy(x, weight, targets), weight)[0]
    assert gradient.isfinite().all() and gradient.all(1).all()


# the norm

SHAPES = ((1, 1), (2, 3, 5), (33, 64), (5, 127), (3, 1025), (2, 8192))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("added", (True, False), ids=("sum", "plain"))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_norm(shape, added, dtype, poisoned):
    y = draw(*shape, dtype=dtype, seed=2) if added else None
    inputs = draw(*shape, dtype=dtype), y, draw(shape[-1], dtype=dtype, seed=3)
    agrees(add_rms_norm, norm.reference, inputs, eps=1e-5)


def test_norm_is_that_of_pytorch():
    module = torch.nn.RMSNorm(24, device=DEVICE)
    module.weight.data = draw(24, seed=3).data
    x = draw(3, 5, 24, scale=1e-3)  # so small that eps counts
    torch.testing.assert_close(add_rms_norm(x, None, module.weight)[1], module(x))


@pytest.mark.parametrize("dtypes", list(itertools.permutations(DTYPES)), ids=str)
def test_norm_of_mixed_dtypes(dtypes):
    inputs = [draw(4, 48, dtype=dtypes[0]), draw(4, 48, dtype=dtypes[1], seed=2),
              draw(48, dtype=dtypes[2], seed=3)]
    agrees(add_rms_norm, norm.reference, inputs)
    total, normed = add_rms_norm(*inputs)
    assert total.dtype == normed.dtype == torch.promote_types(*dtypes[:2])


def test_norm_of_which_one_result_is_used():
    x, y, weight = draw(6, 40), draw(6, 40, seed=2), draw(40, seed=3)
    for i in (0, 1):
        ours, theirs = (
            torch.autograd.grad(f(x, y, weight)[i].square().sum(), (x, y), allow_unused=True)
            for f in (add_rms_norm, norm.reference)
        )
        torch.testing.assert_close(ours, theirs)


def test_norm_of_rows_that_many_programs_share(monkeypatch):
    """More rows than there are partial sums, and the same bits twice."""
    monkeypatch.setattr(norm, "PARTIAL", 4)
    x, weight = draw(43, 1024), draw(1024, seed=3)
    first, second = (
        torch.autograd.grad(add_rms_norm(x, None, weight)[1].square().sum(), weight)[0]
        for _ in range(2)
    )
    expected = torch.autograd.grad(norm.reference(x, None, weight)[1].square().sum(), weight)[0]
    assert torch.equal(first, second)
    torch.testing.assert_close(first, expected, rtol=1e-5, atol=1e-3)


def test_norm_of_what_is_not_contiguous():
    x, y, weight = draw(6, 20, 8).transpose(1, 2), draw(6, 8, 40, seed=2)[..., ::2], draw(20)
    torch.testing.assert_close(add_rms_norm(x, y, weight), norm.reference(x, y, weight))


# rotary positions


def positions_of(B, T, most=5000):
    generator = torch.Generator().manual_seed(4)
    return torch.randint(most, (B, T), generator=generator).to(DEVICE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ((1, 1, 1, 2), (2, 3, 17, 6), (1, 2, 65, 64), (2, 1, 3, 256)),
                         ids=str)
def test_rotary(shape, dtype, poisoned):
    x = draw(*shape, dtype=dtype)
    positions = positions_of(shape[0], shape[2])
    agrees(rotary.rotary, rotary.reference, [x], positions=positions)


def test_rotary_is_that_of_the_models():
    x, positions = draw(2, 3, 9, 16), positions_of(2, 9)
    angles = positions[:, None, :, None] * rotary_frequencies(16).to(DEVICE)
    expected = rotate(x, angles.cos(), angles.sin())
    torch.testing.assert_close(rotary.rotary(x, positions), expected, rtol=0, atol=3e-6)


@pytest.mark.parametrize("most", (1, 1000, 1_000_000))
def test_sines_at_every_distance(most):
    """Of base 1 every pair turns by the position itself, an angle that float32 holds."""
    positions = torch.linspace(-most, most, 999).round().long()[None].to(DEVICE)
    x = torch.stack([torch.ones(999), torch.zeros(999)], 1)[None, None].to(DEVICE)
    turned = rotary.rotary(x, positions, base=1.0)[0, 0]
    exact = torch.stack([positions[0].double().cos(), positions[0].double().sin()], 1)
    assert (turned - exact).abs().max() < 2e-7


def test_rotary_of_any_strides():
    qkv = draw(2, 5, 12, 8)  # (B, T, H, D), as a projection leaves it
    x = qkv.transpose(1, 2)[:, ::2]
    positions = torch.arange(5, device=DEVICE).expand(2, 5)
    turned = rotary.rotary(x, positions, 500.0)
    torch.testing.assert_close(turned, rotary.reference(x, positions, 500.0))
    wide = draw(2, 3, 5, 16)[..., ::2]
    assert torch.equal(rotary.rotary(wide, positions), rotary.rotary(wide.contiguous(), positions))
    assert torch.equal(rotary.rotary(x, positions.int()), rotary.rotary(x, positions))


def test_rotary_keeps_lengths_and_turns_back():
    x, positions = draw(2, 3, 9, 16), positions_of(2, 9)
    turned = rotary.rotary(x, positions)
    torch.testing.assert_close(turned.norm(dim=3), x.norm(dim=3))
    torch.testing.assert_close(rotary.rotary(turned, -positions), x.detach(), rtol=0, atol=3e-6)


# as operators

CALLS = {
    "loss": (linear_cross_entropy_sum, lambda: (
        draw(5, 8), draw(20, 8, seed=2), targets_of(5, 20), 3.0, 2, True, True)),
    "loss alone": (linear_cross_entropy_sum, lambda: (
        draw(5, 8).detach(), draw(20, 8).detach(), targets_of(5, 20), 0.0, 0, False, False)),
    "norm": (norm.add_rms_norm_forward, lambda: (
        draw(3, 8), draw(3, 8, seed=2), draw(8, dtype=torch.bfloat16), 1e-6)),
    "plain norm": (norm.add_rms_norm_forward, lambda: (draw(3, 8), None, draw(8), 1e-6)),
    "norm backward": (norm.add_rms_norm_backward, lambda: (
        *(x.detach() for x in (draw(3, 8), draw(8), draw(3, 1))), None, draw(3, 8).detach())),
    "rotary": (rotary.turned, lambda: (
        draw(2, 5, 3, 8).transpose(1, 2), positions_of(2, 5), 100.0, False)),
}


@pytest.mark.parametrize("name", CALLS)
def test_operator(name):
    operator, arguments = CALLS[name]
    opcheck(operator, arguments())


def test_all_under_compile_as_one_graph():
    x, y, weight, head = draw(2, 3, 8), draw(2, 3, 8, seed=2), draw(8, seed=3), draw(20, 8, seed=4)
    positions, targets = positions_of(2, 3), targets_of(6, 20)

    def function(x, y, weight, head):
        x, normed = add_rms_norm(x, y, weight)
        normed = rotary.rotary(normed[:, None], positions)[:, 0]
        _, normed = add_rms_norm(x + normed, None, weight)
        return linear_cross_entropy(normed.flatten(0, 1), head, targets, cap=5.0)

    inputs = x, y, weight, head
    torch._dynamo.reset()
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(measured(compiled, inputs, {}), measured(function, inputs, {}))


# what is refused

X, T = torch.zeros(4, 8, device=DEVICE), torch.zeros(4, dtype=torch.int64, device=DEVICE)
X4, P = torch.zeros(2, 3, 5, 8, device=DEVICE), torch.zeros(2, 5, dtype=int, device=DEVICE)
REFUSED = {
    "x must have two": lambda: linear_cross_entropy(X[0], X, T),
    "x must be one of float32, bfloat16, float16, not torch.float64":
        lambda: linear_cross_entropy(X.double(), X, T),
    r"weight must be \(V, 8\)": lambda: linear_cross_entropy(X, X[:, :7], T),
    "weight must have a row": lambda: linear_cross_entropy(X, X[:0], T),
    r"targets must be \(4,\)": lambda: linear_cross_entropy(X, X, T[:3]),
    "targets must be int64, not torch.int32": lambda: linear_cross_entropy(X, X, T.int()),
    "cap must be 0 .* not -1": lambda: linear_cross_entropy(X, X, T, cap=-1),
    "cap must be .* not nan": lambda: linear_cross_entropy(X, X, T, cap=float("nan")),
    "chunk must be": lambda: linear_cross_entropy(X, X, T, chunk=-1),
    "y must be .* not": lambda: add_rms_norm(X, X[:3], X[0]),
    "y must be one of": lambda: add_rms_norm(X, X.long(), X[0]),
    r"weight must be \(8,\)": lambda: add_rms_norm(X, X, X[0, :7]),
    r"x must be \(\.\.\., C\)": lambda: add_rms_norm(X[:, :0], None, X[0, :0]),
    "eps must be": lambda: add_rms_norm(X, X, X[0], -1e-6),
    r"x must be \(B, H, T, D\)": lambda: rotary.rotary(X, P),
    "even D": lambda: rotary.rotary(X4[..., :7], P),
    r"positions must be \(2, 5\)": lambda: rotary.rotary(X4, P[:1]),
    "positions must be int32 or int64": lambda: rotary.rotary(X4, P.float()),
    "base must be": lambda: rotary.rotary(X4, P, 0.0),
    "must be on": lambda: rotary.rotary(X4, P.to("meta")),
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_bad_input_is_refused_in_a_sentence(sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        REFUSED[sentence]()
    assert str(error.value).endswith(".")
