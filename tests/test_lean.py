"""nanogpt/lean.py: the same as PyTorch's to rounding, from less memory."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nanogpt.lean import NormOfFeatures, RMSNorm, SquaredReLU, rms_norm, squared_relu


def noise(*shape, dtype=torch.float32):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


def autocast():
    return torch.autocast("cpu", dtype=torch.bfloat16)


def with_gradient(function, x):
    """What it gives and, of a weighted sum of that, the gradient."""
    x = x.clone().requires_grad_()
    y = function(x)
    (y * noise(*y.shape).cos().to(y.dtype)).sum().backward()
    return y.detach(), x.grad


def remembered(function, x):
    """Bytes that are kept for the backward pass of it and of the map that follows, each once."""
    sizes = {}
    weight = noise(8, x.shape[-1]).to(x.dtype).requires_grad_()

    def keep(tensor):
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        F.linear(function(x.clone().requires_grad_()), weight)
    return sum(sizes.values()) - weight.nbytes


PIECES = {
    "norm": (rms_norm, lambda x: F.rms_norm(x, x.shape[-1:]),
             lambda x: NormOfFeatures.apply(x, torch.float32)),
    "squared relu": (squared_relu, lambda x: F.relu(x).square(), SquaredReLU.apply),
}


@pytest.mark.parametrize("piece", PIECES)
def test_values_and_gradients_are_those_of_pytorch(piece):
    ours, theirs, exactly = PIECES[piece]
    x = 3 * noise(4, 5, 16)
    for found, expected in zip(with_gradient(exactly, x), with_gradient(theirs, x)):
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)
    for found, expected in zip(with_gradient(ours, x), with_gradient(theirs, x)):
        assert torch.equal(found, expected)  # where nothing is said of bfloat16, PyTorch's own
    with autocast():
        rounded = with_gradient(ours, x.bfloat16())
    assert all(tensor.dtype == torch.bfloat16 for tensor in rounded)
    for found, expected in zip(rounded, with_gradient(theirs, x.bfloat16().float())):
        assert torch.allclose(found.float(), expected, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("piece", PIECES)
def test_less_is_remembered(piece):
    ours, theirs, _ = PIECES[piece]
    x = noise(64, 32).bfloat16()
    with autocast():
        mine, other = (remembered(function, x) for function in (ours, theirs))
    assert x.nbytes <= mine < 1.2 * x.nbytes  # the result, and a number a row
    assert other >= 2 * x.nbytes


def test_the_gain_of_each_feature():
    x, norms = noise(6, 8), (RMSNorm(8), nn.RMSNorm(8))
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5, generator=torch.Generator().manual_seed(1))
    assert torch.equal(norms[0](x), norms[1](x))
    with autocast():
        y = norms[0](x)
        y.float().sin().sum().backward()
    assert y.dtype == torch.bfloat16 and torch.allclose(y.float(), norms[1](x), rtol=0.02)
    norms[1](x).sin().sum().backward()
    found, expected = (norm.weight.grad for norm in norms)
    assert found.dtype == torch.float32 and torch.allclose(found, expected, rtol=0.03, atol=0.03)


def test_zeros_have_no_norm_and_stay():
    with autocast():
        y, gradient = with_gradient(rms_norm, torch.zeros(2, 4))
    assert not y.any() and gradient.isfinite().all()
