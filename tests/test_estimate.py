"""nanogpt/estimate.py: what a run is told to need is what it then needs."""

import json
import math
import mmap
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

import nanogpt
from nanogpt import estimate as module
from nanogpt.estimate import Estimate, advice, count, estimate, in_words, most_used, warning
from nanogpt.machine import Machine
from nanogpt.processes import Processes
from nanogpt.settings import Config

ROOT = Path(__file__).parents[1]
CPU = Machine("cpu", "float32", False)
ALONE = Processes()
GPT2 = dict(layers=3, heads=2, width=32, position="learned", norm="layer", mlp="gelu",
            qk_norm=False, tied=True, bias=True, score_cap=0.0, logit_cap=0.0, zero_init=False)


def config(model="gpt", sizes=(), **more):
    settings = dict(
        model=model, data="tales", lines=False, sizes=dict(sizes), block_size=16, steps=10,
        batch_size=8, lr=0.01, warmup=1, optimizer="muon", weight_decay=0.0, clip=1.0,
        eval_every=5, patience=0, seed=0, device="cpu", dtype="float32", compile=False,
    )
    return Config(**settings | more)


def expected(c, vocab_size=20, machine=CPU, processes=ALONE, separated=False):
    return estimate(c, vocab_size, separated, machine, processes)


@pytest.mark.parametrize("stage", nanogpt.STAGES)
def test_parameters_are_counted_without_making_them(stage):
    model = nanogpt.build(stage, 20, 16)
    parameters = sum(p.numel() for p in model.parameters())
    assert expected(config(stage)).parameters == count(config(stage), 20) == parameters
    if "layers" in nanogpt.sizes(stage):
        model = nanogpt.build(stage, 20, 16, layers=5)
        assert count(config(stage, {"layers": 5}), 20) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("model", nanogpt.STAGES)
@pytest.mark.parametrize("more", [{}, {"accumulate": 2, "checkpointing": True, "separated": True}])
def test_a_small_step_takes_what_it_is_said_to_take_without_elements(model, more):
    more = dict(more)
    separated = more.pop("separated", False)
    c = config(model, **more if model == "gpt" else {})
    assert module.is_small(c, 20, 8)
    torch.manual_seed(3)
    steps = []
    for small in (True, False):
        with module.elements(small):
            steps.append(module.go_through(c, 20, 8, 16, separated, CPU))
            part = module.go_through(c, 20, 8, 16, separated, CPU, share=4)
        assert part.judging == pytest.approx(steps[-1].judging, rel=0.01)
    assert steps[0] == steps[1]
    drawn = torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(3))  # it drew nothing of what comes after


def test_what_takes_long_or_much_is_not_small():
    gpt = config(sizes=nanogpt.sizes("gpt"), block_size=64)
    assert module.is_small(gpt, 65, 24)
    for large in (dict(width=1024), dict(layers=48), dict(heads=128)):
        block = 2048 if "heads" in large else 64
        assert not module.is_small(replace(gpt, sizes=gpt.sizes | large, block_size=block), 65, 24)
    assert not module.is_small(gpt, 50257, 24) and not module.is_small(gpt, 65, 1024)
    bigram = config("bigram")
    assert module.is_small(bigram, 65, 512) and not module.is_small(bigram, 8000, 32)
    cnn = config("cnn", {"layers": 4, "width": 32})
    assert module.is_small(cnn, 30, 128)
    assert not module.is_small(replace(cnn, sizes={"layers": 20, "width": 32}), 30, 128)


@pytest.mark.parametrize("vocab_size, share", [(65, module.FEW), (5000, 1), (50257, 1)])
def test_a_few_rows_of_an_evaluation_do_where_its_logits_are_held_at_once(
    vocab_size, share, monkeypatch
):
    def noting(*args):
        shares.append(args[-1])
        return real(*args)

    real, shares = module.go_through, []
    monkeypatch.setattr(module, "go_through", noting)
    c = config(sizes={"layers": 1, "width": 16, "heads": 1}, batch_size=1)
    expected(c, vocab_size)
    assert shares == [share]
    with module.elements(small=False):
        whole, part = (real(c, vocab_size, 1, 16, False, CPU, n).judging for n in (1, 4))
    assert part == pytest.approx(whole, rel=0.01) if share > 1 else part > 1.2 * whole


@pytest.mark.parametrize("model", nanogpt.STAGES)
@pytest.mark.parametrize("attention", ["sdpa", "naive"])
def test_operations_are_those_that_pytorch_counts(model, attention):
    c = config(model, block_size=12, attention=attention)
    built = module.shapes_of(c, 20, c.sizes)
    tokens = torch.zeros(8, 12, dtype=torch.long)
    cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # which it does not know

    def count(q, k, v, *more, **named):
        return sdpa_flop_count(q, k, v)

    with FlopCounterMode(display=False, custom_mapping={cpu: count}) as counter:
        built.loss(tokens, tokens)
    assert module.go_through(c, 20, 8, 12, False, CPU).flops == 3 * counter.get_total_flops()


def test_operations_are_those_of_the_formula():
    # Chowdhery et al. (2022), appendix B: 6 N + 12 layers * width * block size a token, where N
    # are the weights of matrices; here the head is one, though it is the embedding's
    c = config(sizes=GPT2)
    matrices = 3 * 12 * 32**2 + 20 * 32
    assert expected(c).flops == 6 * matrices + 12 * 3 * 32 * 16
    assert expected(replace(c, checkpointing=True)).flops == expected(c).flops
    assert expected(replace(c, accumulate=2)).flops == expected(c).flops
    assert expected(c, processes=Processes(0, 2)).flops == expected(c).flops


def test_what_is_kept_is_weights_gradients_and_the_optimizers_means():
    model = nanogpt.build("gpt", 20, 16, **GPT2)
    parameters = sum(p.numel() for p in model.parameters())
    matrices = sum(p.numel() for p in model.layers.parameters() if p.ndim == 2)
    steps = 4 * len(list(model.parameters()))  # AdamW counts them for each parameter
    c = config(sizes=GPT2)
    adamw = expected(replace(c, optimizer="adamw"))
    assert 0 <= adamw.kept - 4 * 4 * parameters <= steps
    assert 0 <= adamw.kept - expected(c).kept - 4 * matrices <= steps
    averaged = expected(replace(c, optimizer="adamw", average=0.9))
    assert averaged.kept - adamw.kept == 4 * parameters
    parted = expected(replace(c, shard=True), processes=Processes(0, 2))
    assert parted.kept == expected(c).kept // 2


def passing(c, **more):
    """The bytes of an estimate that come and go with a step."""
    before = psutil_rss()
    wanted = expected(c, **more)
    return wanted.memory - wanted.kept - before


def psutil_rss():
    return module.psutil.Process().memory_info().rss


def test_memory_grows_with_the_batch_and_shrinks_with_its_parts(monkeypatch):
    monkeypatch.setattr(module.psutil.Process, "memory_info", lambda self: FIXED)
    c = config(sizes=GPT2, batch_size=2048)
    assert passing(replace(c, batch_size=4096)) == pytest.approx(2 * passing(c), rel=0.1)
    assert passing(replace(c, accumulate=4)) == pytest.approx(passing(c) / 4, rel=0.2)
    assert passing(c, processes=Processes(0, 4)) == pytest.approx(passing(c) / 4, rel=0.2)
    assert passing(replace(c, checkpointing=True)) < 0.6 * passing(c)
    half = passing(replace(c, dtype="bfloat16"), machine=Machine("cpu", "bfloat16", False))
    assert half < 0.9 * passing(c)
    monkeypatch.setattr(module, "BEYOND", math.inf)
    absurd = passing(replace(c, batch_size=10**9))  # told from a part of it, and at once
    assert absurd == pytest.approx(passing(c) * 10**9 / 2048, rel=0.1)


@pytest.mark.parametrize("stage", ["rnn", "cnn", "mlp"])
def test_long_rows_are_told_from_short_ones(stage, monkeypatch):
    monkeypatch.setattr(module.psutil.Process, "memory_info", lambda self: FIXED)
    c = config(stage, block_size=512, batch_size=64)
    whole = expected(c)
    monkeypatch.setattr(module, "LONG", 64)
    part = expected(c)
    assert part.memory == pytest.approx(whole.memory, rel=0.1)
    assert part.flops == pytest.approx(whole.flops, rel=0.1)


@pytest.mark.parametrize("stage", ["gpt", "lstm"])
def test_a_batch_that_no_machine_holds_is_refused_at_once(stage):
    with pytest.raises(ValueError, match="--batch-size"):
        expected(config(stage, batch_size=10**9))


class Fixed:
    rss = 10**8


FIXED = Fixed()


@pytest.mark.parametrize("sizes", [
    {"width": 10**8}, {"width": 10**10}, {"width": 10**20}, {"layers": 10**9},
])
def test_sizes_that_no_machine_holds_are_refused_at_once(sizes):
    with pytest.raises(ValueError, match="lower --width"):
        expected(config(sizes=dict(GPT2) | dict(heads=1) | sizes))


def test_a_block_that_no_machine_holds_is_refused_at_once():
    with pytest.raises(ValueError, match="lower .*--block-size"):
        expected(config(sizes=GPT2, block_size=10**12))


def test_the_user_is_warned_and_told_what_to_lower(monkeypatch):
    wanted = Estimate(10**6, 10**9, 10**8, 6e6, 0.1)
    monkeypatch.setattr(module, "available", lambda machine: 10**9)
    assert warning(wanted, config(), CPU) == ""
    there = 9 * 10**8
    monkeypatch.setattr(module, "available", lambda machine: there)
    said = warning(wanted, config(), CPU)
    assert "900 MB" in said and "--accumulate=2" in said and "--checkpointing" in said
    rnn = config("rnn", nanogpt.sizes("rnn"))
    assert "--checkpointing" not in advice(wanted, rnn, there)
    assert "--accumulate=4" in advice(wanted, config(accumulate=2), there)
    assert "--accumulate" not in advice(wanted, config(batch_size=1), there)
    large = replace(wanted, kept=9 * 10**8)
    gpt = config(sizes=GPT2)
    assert "--width" in advice(large, gpt, there) and "muon" not in advice(large, gpt, there)
    assert "--optimizer=muon" in advice(large, replace(gpt, optimizer="adamw"), there)
    assert "--layers" not in advice(large, config("mlp", nanogpt.sizes("mlp")), there)


@pytest.mark.parametrize("rows, world, there, parts", [
    (9, 1, 9 * 10**8, 3),  # the least that divides the rows
    (64, 1, 2 * 10**8, 16),  # and that fits: a ninth of what passes
    (6, 2, 9 * 10**8, 3),  # and that divides each process's rows
])
def test_accumulating_as_advised_is_possible_and_enough(rows, world, there, parts):
    wanted = Estimate(10**6, 10**9, 10**8, 6e6, 0.1)
    said = advice(wanted, config(batch_size=rows), there, world)
    assert f"--accumulate={parts} " in said


def test_bytes_in_words():
    assert [in_words(n) for n in (5e5, 2.5e8, 1.25e9)] == ["0 MB", "250 MB", "1.2 GB"]


def test_the_most_that_was_used_never_falls():
    before = most_used(CPU)
    freed = before - module.psutil.Process().memory_info().rss  # by tests before this one
    with mmap.mmap(-1, 200_000_000 + freed) as block:  # pages that no other tensor left behind
        block[::4096] = bytes(len(block[::4096]))
        during = most_used(CPU)
    assert during > before + 150_000_000  # Linux counts a few pages late
    assert most_used(CPU) > during - 50_000_000


@pytest.mark.skipif(platform.system() != "Linux", reason="elsewhere memory is counted otherwise")
@pytest.mark.parametrize("flags", [
    # much to keep; much that passes
    "--model=bigram --tokenizer=bpe --vocab-size=8192 --batch-size=8 --optimizer=adamw",
    "--model=gpt --width=64 --layers=2 --heads=2 --batch-size=1024 --block-size=64",
])
def test_above_a_gigabyte_the_estimate_is_within_a_fifth_of_what_is_measured(flags, tmp_path):
    script = [sys.executable, "train.py", "--data=tales", "--steps=2", "--eval-every=2",
              "--device=cpu", f"--out={tmp_path / 'run'}", *flags.split()]
    subprocess.run(script, cwd=ROOT, check=True, capture_output=True, timeout=300)
    result = json.loads((tmp_path / "run/result.json").read_text("utf-8"))
    assert result["memory"] > 1e9
    assert result["memory_expected"] == pytest.approx(result["memory"], rel=0.2)
