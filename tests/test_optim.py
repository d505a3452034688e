"""nanogpt/optim.py: Muon against plain arithmetic and PyTorch's, and which optimizer takes what."""

import copy
import io

import numpy as np
import pytest
import torch
from torch import nn

from makemore import STAGES, build
from nanogpt import optim
from nanogpt.optim import AdamW, Muon, from_blocks, make_optimizers, orthogonalise, to_blocks
from nanogpt.processes import load_optimizer

V, BLOCK = 11, 8
SHAPES = [(4, 4), (4, 12), (12, 4), (4, 10), (10, 4), (1, 5), (5, 1), (1, 1)]


def noise(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def same(a, b, tolerance=1e-10):
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


def run(optimizer, weights, steps, first=0):
    """Steps with gradients at random, of a size that changes from step to step."""
    for step in range(first, first + steps):
        for i, weight in enumerate(weights):
            weight.grad = noise(*weight.shape, seed=100 * step + i) * 2.0**step
        optimizer.step()


def parameters(*shapes):
    return [nn.Parameter(noise(*shape, seed=50 + i)) for i, shape in enumerate(shapes)]


# Orthogonal matrices


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 8), (8, 24), (16, 40), (32, 64), (5, 200)])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_singular_values_come_near_1(shape, scale):
    matrices = scale * noise(20, *shape)
    values = torch.linalg.svdvals(orthogonalise(matrices))
    assert 0.6 < values.min() and values.max() < 1.3


@pytest.mark.parametrize("size", [2, 8, 64])
def test_the_directions_stay(size):
    # A random square may have a singular value too near 0 to reach 1 in five steps, so these are
    # given: the smallest a hundredth of the largest.
    u, _, vt = torch.linalg.svd(noise(size, size))
    given = torch.logspace(0, -2, size, dtype=torch.float64)
    straight = u.T @ orthogonalise((u * given @ vt)[None])[0] @ vt.T
    values = straight.diagonal()
    assert 0.6 < values.min() and values.max() < 1.3
    same(straight, values.diag())


def test_a_gradient_of_zeros_moves_nothing():
    weight = nn.Parameter(noise(3, 6))
    before = weight.detach().clone()
    weight.grad = torch.zeros_like(weight)
    Muon([weight], lr=0.1).step()
    same(weight.detach(), before, 0)


# Blocks


@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_come_back(shape):
    matrix = noise(*shape)
    blocks = to_blocks(matrix)
    short, long = min(shape), max(shape)
    each = (short, short) if long % short == 0 else (short, long)
    assert blocks.shape == (matrix.numel() // (each[0] * each[1]), *each)
    same(from_blocks(blocks, matrix.shape), matrix, 0)


def test_blocks_are_the_gates():
    gates = [noise(4, 4, seed=seed) for seed in range(3)]
    for i, gate in enumerate(gates):
        same(to_blocks(torch.cat(gates))[i], gate.T, 0)  # stacked, as in nn.Linear(4, 12)
        same(to_blocks(torch.cat(gates, 1))[i], gate, 0)  # side by side, as in nn.Linear(12, 4)


# Muon


def plain_muon(weight, gradients, lr, weight_decay):
    """Muon for one square matrix, in NumPy, from its description."""
    weight, momentum = weight.copy(), np.zeros_like(weight)
    for gradient in gradients:
        momentum = 0.95 * momentum + 0.05 * gradient
        x = 0.95 * momentum + 0.05 * gradient  # Nesterov's look ahead
        x = x / np.sqrt((x**2).sum())
        for _ in range(5):
            xxt = x @ x.T
            x = 3.4445 * x - 4.7750 * xxt @ x + 2.0315 * xxt @ xxt @ x
        weight = weight - lr * weight_decay * weight - lr * 0.2 * np.sqrt(len(x)) * x
    return weight


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_muon_is_the_plain_one(weight_decay):
    (weight,) = parameters((6, 6))
    gradients = [noise(6, 6, seed=100 * step).numpy() * 2.0**step for step in range(5)]
    expected = plain_muon(weight.detach().numpy(), gradients, 0.1, weight_decay)
    run(Muon([weight], lr=0.1, weight_decay=weight_decay), [weight], 5)
    same(weight.detach(), torch.from_numpy(expected), 1e-7)  # 1e-7 is added to the norm


def test_many_matrices_at_once_are_each_alone():
    shapes = [(6, 6), (18, 6), (6, 24), (6, 6), (4, 10), (10, 4), (3, 3), (1, 6)]
    together = parameters(*shapes)
    run(Muon(together, lr=0.1, weight_decay=0.1), together, 3)
    for i, weight in enumerate(parameters(*shapes)):
        optimizer = Muon([weight], lr=0.1, weight_decay=0.1)
        for step in range(3):
            weight.grad = noise(*weight.shape, seed=100 * step + i) * 2.0**step
            optimizer.step()
        same(together[i].detach(), weight.detach())


def test_stacked_gates_move_as_each_alone():
    gates = parameters((6, 6), (6, 6), (6, 6))
    stacked = nn.Parameter(torch.cat([gate.detach() for gate in gates]))
    ours, alone = Muon([stacked], lr=0.1), Muon(gates, lr=0.1)
    for step in range(3):
        run(alone, gates, 1, first=step)
        stacked.grad = torch.cat([gate.grad for gate in gates])
        ours.step()
    same(stacked.detach(), torch.cat([gate.detach() for gate in gates]))


def test_a_parameter_without_a_gradient_stays():
    used, unused = parameters((4, 4), (4, 4))
    before = unused.detach().clone()
    optimizer = Muon([used, unused], lr=0.1, weight_decay=0.5)
    run(optimizer, [used], 2)
    same(unused.detach(), before, 0)


def test_muon_with_products_in_bfloat16():
    for products, dtype in ((torch.bfloat16, torch.float32), (None, torch.float64)):
        found = orthogonalise(noise(4, 16, 24).to(dtype), products=products)
        exact = orthogonalise(noise(4, 16, 24))
        assert found.dtype == dtype and (found - exact).abs().max() < (0.03 if products else 1e-12)
    (half,), (full,) = parameters((16, 24)), parameters((16, 24))
    start = full.detach().clone()
    for weight, products in ((half, torch.bfloat16), (full, None)):
        run(Muon([weight], lr=0.1, products=products), [weight], 3)
    a, b = (half.detach() - start).flatten(), (full.detach() - start).flatten()
    assert not torch.equal(a, b) and torch.cosine_similarity(a, b, 0) > 0.999


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this PyTorch has no Muon")
@pytest.mark.parametrize("shape", [(16, 16), (16, 24), (24, 16)])  # not blocks: theirs has none
def test_muon_is_about_pytorch_s(shape):
    (ours,), (theirs,) = parameters(shape), parameters(shape)
    start = ours.detach().clone()
    kind = dict(lr=0.1, momentum=0.95, weight_decay=0.1)
    run(Muon([ours], **kind), [ours], 3)
    run(torch.optim.Muon([theirs], adjust_lr_fn="match_rms_adamw", **kind), [theirs], 3)
    a, b = (ours.detach() - start).flatten(), (theirs.detach() - start).flatten()
    assert torch.cosine_similarity(a, b, 0) > 0.98  # it orthogonalises in bfloat16
    assert 0.95 < a.norm() / b.norm() < 1.05


# AdamW


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_adamw_is_pytorch_s_to_the_bit_and_takes_its_states(decay):
    shapes = [(4, 6), (7,), (3, 3)]
    ours, theirs = ([p.detach().float().requires_grad_() for p in parameters(*shapes)]
                    for _ in range(2))

    def step(optimizer, weights, number):
        for i, weight in enumerate(weights[:1] if number == 1 else weights):
            weight.grad = noise(*weight.shape, seed=100 * number + i).float()
        optimizer.step()
        optimizer.zero_grad()

    one = AdamW([{"params": ours[:2], "weight_decay": decay}, {"params": ours[2:]}], lr=0.03)
    other = torch.optim.AdamW([{"params": theirs[:2], "weight_decay": decay},
                               {"params": theirs[2:], "weight_decay": 0.0}],
                              lr=0.03, betas=(0.9, 0.99), fused=True)
    for number in range(3):
        step(one, ours, number)
        step(other, theirs, number)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs))
    # and each goes on from what the other has saved
    saved = [copy.deepcopy(optimizer.state_dict()) for optimizer in (one, other)]
    assert saved[0]["state"].keys() == saved[1]["state"].keys()
    assert [g["params"] for g in saved[0]["param_groups"]] == [[0, 1], [2]]
    one.load_state_dict(saved[1])
    other.load_state_dict({"state": saved[0]["state"], "param_groups": [
        before | after for before, after in zip(*(s["param_groups"] for s in saved[::-1]))]})
    for number in range(3, 5):
        step(one, ours, number)
        step(other, theirs, number)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs))


def test_adamw_where_there_is_no_kernel_for_it(monkeypatch):
    monkeypatch.setattr(optim, "has_kernel", lambda parameter: False)
    (ours,), (theirs,) = parameters((4, 6)), parameters((4, 6))
    run(AdamW([ours], lr=0.03, weight_decay=0.1), [ours], 3)
    run(torch.optim.AdamW([theirs], lr=0.03, betas=(0.9, 0.99), weight_decay=0.1), [theirs], 3)
    same(ours.detach(), theirs.detach(), 1e-12)


# Which optimizer takes what


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_every_parameter_has_one_place(stage, kind):
    model = build(stage, V, BLOCK)
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    taken = {}
    for optimizer in make_optimizers(model, kind, lr=0.01, weight_decay=0.1):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                name = name_of[id(parameter)]
                assert name not in taken
                taken[name] = type(optimizer)
                assert group["lr"] == 0.01
                assert group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0.0)
    assert taken.keys() == set(name_of.values())
    for name, parameter in model.named_parameters():
        inside = name.startswith("layers.") and parameter.ndim > 1
        assert taken[name] is (Muon if kind == "muon" and inside else AdamW)
    if kind == "muon" and stage != "bigram":
        assert Muon in taken.values()


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_the_embedding_may_take_another_rate(kind):
    model = build("transformer", V, BLOCK)
    shares = {"embedding.weight": 0.5, "head.weight": 0.25}
    found = {}
    for optimizer in make_optimizers(model, kind, 0.01, lr_shares=shares, momentum=0.8,
                                     embedding_lr=6.0):
        for group in optimizer.param_groups:
            found |= {id(parameter): group["lr_share"] for parameter in group["params"]}
            assert group.get("momentum", 0.8) == 0.8
    for name, parameter in model.named_parameters():
        expected = {"embedding.weight": 3.0, "head.weight": 0.25}.get(name, 1.0)
        assert found[id(parameter)] == expected


def test_the_state_of_an_optimizer_that_parts_otherwise_is_refused():
    model = build("transformer", V, BLOCK)
    (one,), (two,) = (make_optimizers(model, "adamw", 0.01, embedding_lr=lr) for lr in (1.0, 2.0))
    load_optimizer(one, one.state_dict())
    with pytest.raises(ValueError, match="another version"):
        load_optimizer(one, two.state_dict())


def losses(model, optimizers, steps, first):
    """Of training on batches at random, each a function of its step."""
    values = []
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        tokens, targets = torch.randint(V, (2, 4, BLOCK), generator=generator)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = model.loss(tokens, targets)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        values.append(loss.item())
    return values


def fresh(stage, kind):
    model = build(stage, V, BLOCK, **({"layers": 2, "width": 16} if stage != "bigram" else {}))
    return model.eval(), make_optimizers(model, kind, lr=0.05, weight_decay=0.1)


@pytest.mark.parametrize("kind", ["muon", "adamw"])
@pytest.mark.parametrize("stage", ["bigram", "gru", "transformer"])
def test_training_goes_on_from_saved_states(stage, kind):
    torch.manual_seed(0)
    model, optimizers = fresh(stage, kind)
    losses(model, optimizers, 3, first=0)
    file = io.BytesIO()
    torch.save([model.state_dict(), *(optimizer.state_dict() for optimizer in optimizers)], file)
    expected = losses(model, optimizers, 3, first=3)

    file.seek(0)
    weights, *states = torch.load(file, weights_only=True)
    again, others = fresh(stage, kind)
    again.load_state_dict(weights)
    for optimizer, state in zip(others, states, strict=True):
        optimizer.load_state_dict(state)
    assert losses(again, others, 3, first=3) == expected
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)

    # and not without them
    fourth, others = fresh(stage, kind)
    fourth.load_state_dict(weights)
    assert losses(fourth, others, 3, first=3) != expected


def test_a_matrix_moves_by_the_learning_rate_under_both():
    # So that both can take the same: an update has about the root mean square of Adam's, 0.2 to 1.
    for shape in [(32, 32), (96, 32), (32, 80)]:
        (weight,) = parameters(shape)
        before = weight.detach().clone()
        run(Muon([weight], lr=0.01), [weight], 1)
        assert 0.1 < (weight.detach() - before).square().mean().sqrt() / 0.01 < 0.3
