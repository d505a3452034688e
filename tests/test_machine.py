"""nanogpt/machine.py: what is chosen, what is refused and how. Nothing is really compiled here."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nanogpt.machine import DEVICES, DTYPES, Machine, choose


@pytest.fixture(autouse=True)
def no_real_compiling(monkeypatch):
    """A test that means to ask torch.compile says what it answers; a compiler is there."""
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("really compiled"))
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(shutil, "which", lambda name, *_, **__: f"/usr/bin/{name}")


@pytest.fixture
def gpus(monkeypatch):
    """gpus(count) pretends that there are so many."""

    def pretend(count, capability=(8, 0)):
        def is_bf16_supported(including_emulation=True):  # PyTorch counts emulation unless told not
            return count > 0 and (including_emulation or capability >= (8, 0))

        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Some GPU")

    return pretend


@pytest.fixture
def mps(monkeypatch):
    """mps(there) pretends that there is an MPS device, or none."""
    return lambda there: monkeypatch.setattr(torch.backends.mps, "is_available", lambda: there)


def refusal(*args, **given):
    """The one sentence with which choose refuses its arguments."""
    with pytest.raises(ValueError) as caught:
        choose(*args, **given)
    sentence = str(caught.value)
    assert "\n" not in sentence and sentence.endswith(".")
    return sentence


# What is chosen


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_cpu_can_be_had_always(dtype):
    assert choose("cpu", dtype) == Machine("cpu", dtype, compiled=False, notes=())


def test_the_defaults_are_plain():
    chosen = choose()
    assert chosen.device in DEVICES and chosen.dtype == "float32"
    assert not chosen.compiled and chosen.notes == ()


@pytest.mark.parametrize(
    "count, apple, expected",
    [(0, False, "cpu"), (0, True, "mps"), (1, False, "cuda"), (2, True, "cuda")],
)
def test_auto_takes_the_best_that_is_there(count, apple, expected, gpus, mps):
    gpus(count)
    mps(apple)
    assert choose("auto").device == expected


def test_one_of_several_gpus(gpus):
    gpus(2)
    assert [choose(name).device for name in ("cuda", "cuda:0", "cuda:1")] == [
        "cuda", "cuda:0", "cuda:1"]
    assert Machine("cuda:1", "float32", False).kind == "cuda"
    for name in ("cuda:2", "cuda:-1", "cuda:first"):
        sentence = refusal(name)
        assert name in sentence
    assert "there are 2" in refusal("cuda:2")


# What is refused


@pytest.mark.parametrize("device", ["gpu", "tpu", "CUDA", "", "cpu0"])
def test_unknown_devices_are_refused_with_those_that_are(device):
    sentence = refusal(device)
    assert device in sentence and ", ".join(DEVICES) in sentence


@pytest.mark.parametrize("device", ["cpu:first", "mps:first", "auto:first"])
def test_what_pytorch_cannot_read_as_a_device_is_refused(device, gpus, mps):
    gpus(0)
    mps(True)
    assert device in refusal(device)


@pytest.mark.parametrize("dtype", ["fp16", "float64", "half", "", "bf16"])
@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_unknown_dtypes_are_refused_with_those_that_are(device, dtype):
    sentence = refusal(device, dtype)
    assert dtype in sentence and ", ".join(DTYPES) in sentence


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:1"])
def test_without_a_gpu_the_cpu_is_named(device, gpus):
    gpus(0)
    assert "CUDA" in refusal(device) and "--device=cpu" in refusal(device)


def test_without_mps_the_cpu_is_named(mps):
    mps(False)
    assert "MPS" in refusal("mps") and "--device=cpu" in refusal("mps")


def test_an_old_gpu_has_no_bfloat16(gpus):
    gpus(1, capability=(7, 5))
    sentence = refusal("cuda", "bfloat16")
    assert "--dtype=float16" in sentence and "--dtype=float32" in sentence
    assert choose("cuda", "float16").dtype == "float16"


def test_a_newer_gpu_has_bfloat16(gpus):
    gpus(1)
    assert choose("cuda", "bfloat16") == Machine("cuda", "bfloat16", False)


# The CPU path asks CUDA nothing


def test_the_cpu_path_asks_cuda_nothing(monkeypatch):
    def asked(*_, **__):
        raise AssertionError("CUDA was asked")

    for name in ("is_available", "device_count", "is_bf16_supported", "get_device_capability",
                 "get_device_name", "get_device_properties", "current_device", "is_initialized",
                 "init", "_lazy_init", "synchronize", "set_device"):
        monkeypatch.setattr(torch.cuda, name, asked)
    monkeypatch.setattr(torch, "compile", lambda function=None, **_: function)
    for dtype in DTYPES:
        for compile in (False, True):
            chosen = choose("cpu", dtype, compile)
            assert chosen.compiled is compile
            assert chosen.describe()
            weight = torch.ones(2, 2, requires_grad=True)
            with chosen.autocast():
                loss = (weight @ weight).float().sum()
            chosen.scaler().scale(loss).backward()


# Compiling


def test_compiling_where_it_works(monkeypatch):
    asked = []

    def compile(function, **_):
        asked.append(function)
        return function

    monkeypatch.setattr(torch, "compile", compile)
    chosen = choose("cpu", compile=True)
    assert chosen.compiled and chosen.notes == () and len(asked) == 1  # the trial
    assert chosen.compile(abs) is abs and asked[1] is abs


def test_not_asked_for_is_not_compiled_and_no_note():
    chosen = choose("cpu", compile=False)  # the trial would fail this test
    assert chosen.compile(abs) is abs and chosen.notes == ()


def not_compiled(device="cpu"):
    """The one note of a machine that was asked to compile and cannot."""
    chosen = choose(device, compile=True)
    assert not chosen.compiled and chosen.compile(abs) is abs
    (note,) = chosen.notes
    assert note.startswith("Not compiled: ") and note.endswith("; going on without.")
    assert "\n" not in note and len(note) < 300
    return note


@pytest.mark.parametrize("system", ["Linux", "Darwin", "Windows"])
def test_without_a_compiler_nothing_is_compiled(system, monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    assert "on the PATH" in not_compiled()


@pytest.mark.parametrize("system, there", [("Linux", "g++"), ("Darwin", "clang++")])
def test_one_compiler_is_enough(system, there, monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(shutil, "which", lambda name, *_, **__: name if name == there else None)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    assert choose("cpu", compile=True).compiled


def test_windows_needs_cl(monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    monkeypatch.setattr(shutil, "which", lambda name, *_, **__: None if name == "cl" else name)
    note = not_compiled()
    assert "Windows" in note and "cl " in note
    monkeypatch.setattr(shutil, "which", lambda name, *_, **__: name if name == "cl" else None)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    assert choose("cpu", compile=True).compiled


def test_an_old_gpu_is_not_compiled_for(gpus):
    gpus(1, capability=(6, 1))
    assert "Some GPU" in not_compiled("cuda")


@pytest.mark.parametrize(
    "error, shown",
    [
        (RuntimeError("no inductor here\nand a long trace"), "no inductor here"),
        (NotImplementedError(), "NotImplementedError"),
        (ImportError("  \n\n"), "ImportError"),
        (RuntimeError("x" * 5000), "xxx"),
    ],
)
@pytest.mark.parametrize("when", ["at once", "when called"])
def test_a_trial_that_fails_is_told_and_not_raised(error, shown, when, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(torch, "compile", fail if when == "at once" else lambda *_, **__: fail)
    assert shown in not_compiled()


# Precision


def test_only_float16_scales_its_loss():
    for dtype in DTYPES:
        scaler = Machine("cpu", dtype, False).scaler()
        assert scaler.is_enabled() == (dtype == "float16")
        scale = scaler.scale(torch.ones(())).item()
        assert scale > 1000 if dtype == "float16" else scale == 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_optimizer_sees_gradients_unscaled(dtype):
    chosen, weight = Machine("cpu", dtype, False), torch.ones(2, requires_grad=True)
    scaler, optimizer = chosen.scaler(), torch.optim.SGD([weight], lr=0.5)
    scaler.scale((3 * weight).sum()).backward()
    scaler.unscale_(optimizer)
    assert weight.grad.tolist() == [3, 3]
    scaler.step(optimizer)
    assert weight.tolist() == [-0.5, -0.5]


@pytest.mark.parametrize("dtype", DTYPES)
def test_products_are_of_the_dtype_and_weights_are_not(dtype):
    weight = torch.ones(2, 2)
    with Machine("cpu", dtype, False).autocast():
        assert (weight @ weight).dtype == getattr(torch, dtype)
    assert weight.dtype == torch.float32
    assert (weight @ weight).dtype == torch.float32


def test_muon_multiplies_in_bfloat16_where_the_run_does():
    for device in ("cpu", "cuda:1"):
        assert Machine(device, "bfloat16", False).products == torch.bfloat16
    for device, dtype in (("cpu", "float32"), ("cuda", "float16"), ("mps", "bfloat16")):
        assert Machine(device, dtype, False).products is None


def test_description():
    chosen = Machine("cpu", "bfloat16", False)
    assert chosen.describe().startswith("cpu (") and "bfloat16, not compiled" in chosen.describe()
    assert "float32, compiled" in Machine("cpu", "float32", True).describe()


def test_a_machine_is_what_was_chosen_and_stays_so():
    with pytest.raises(AttributeError):
        choose("cpu").device = "cuda"


KEEPING = """
import sys
import psutil, torch
from nanogpt.machine import give_freed_memory_back, keep_freed_memory
def taken(): return psutil.Process().memory_info().rss
print(keep_freed_memory(largest=int(sys.argv[1])))
before = taken()
large = torch.ones(2**26)  # 256 MiB
del large
print(taken() - before)
give_freed_memory_back()
print(taken() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of Linux's glibc")
@pytest.mark.parametrize("set_by_user, largest", [
    (False, 2**20), (False, 2**28), (True, 2**20),
])
def test_freed_memory_is_kept_unless_weights_are_large_or_malloc_is_set(set_by_user, largest):
    environment = {n: value for n, value in os.environ.items() if not n.startswith("MALLOC_")}
    environment |= {"MALLOC_PERTURB_": "0"} if set_by_user else {}
    script = [sys.executable, "-c", KEEPING, str(largest)]
    process = subprocess.run(script, env=environment, text=True, capture_output=True, check=True,
                             cwd=Path(__file__).parent.parent)
    kept, grown, left = process.stdout.split()
    wanted = not set_by_user and largest == 2**20
    assert kept == str(wanted) or platform.libc_ver()[0] != "glibc"
    assert (int(grown) > 2**27) == (kept == "True") and int(left) < 2**27
