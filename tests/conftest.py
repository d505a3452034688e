"""What the tests of whole runs share: tiny data, small models, command lines without a process."""

import itertools
import json
import os
import shutil
import sys

import pytest
import torch

# Without a GPU Triton's interpreter runs the kernels, if it is asked to before they are imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    import kernels  # noqa: F401

    del os.environ["TRITON_INTERPRET"]

import nanogpt
import train
from data import cli, runs

SYLLABLES = ["ka", "lo", "mi", "re", "su"], ["na", "to", "", "bel"], ["s", "r", "ine"]
SENTENCES = "the cat sat on the mat.\nthe dog ran to the cat.\nwhere is the mat? 🙂\n"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER_FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]
LOCAL = ("file:", "data:", "blob:", "about:", "http://127.0.0.1:", "http://localhost:")
SMALL = dict(layers=1, heads=2, width=8, context=3, embed=4, dropout=0.2)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """More only cost at these sizes, and bits are compared with those of other processes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def interpreter(monkeypatch):
    """For tests that launch kernels: Triton's interpreter, where there is no GPU."""
    if not torch.cuda.is_available():
        monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session")
def words(tmp_path_factory):
    """The path of a file with 60 lines."""
    path = tmp_path_factory.mktemp("data") / "words.txt"
    path.write_text("\n".join(map("".join, itertools.product(*SYLLABLES))), "utf-8")
    return path


@pytest.fixture(scope="session")
def passage(tmp_path_factory):
    """The path of a text that was never parted."""
    path = tmp_path_factory.mktemp("data") / "passage.txt"
    path.write_text(10 * SENTENCES, "utf-8")
    return path


@pytest.fixture(scope="session")
def small():
    """small(stage, name=value): the flags of a small model, dropout included, and those given."""

    def flags(stage, **given):
        sizes = {name: SMALL[name] for name in nanogpt.sizes(stage) if name in SMALL} | given
        return [f"--model={stage}"] + [f"{cli.flag(n)}={v}" for n, v in sizes.items()]

    return flags


@pytest.fixture(scope="session")
def start():
    """start(*flags): what a command line of train.py does, with errors as they are raised."""

    def go(*flags):
        flags = list(map(str, flags))
        if any(flag.startswith("--resume") for flag in flags):
            return train.resume_run(train.make_parser().parse_args(flags))
        return train.new_run(train.make_parser().parse_args(["--device=cpu", *flags]))

    return go


@pytest.fixture(scope="session")
def lines_run(start, small, words, tmp_path_factory):
    """The folder of a finished run on lines, some of which are cut. Not to be written to."""
    run = tmp_path_factory.mktemp("runs") / "lstm-words"
    flags = ["--lines", "--steps=12", "--batch-size=16", "--eval-every=5", "--block-size=7"]
    start(*small("lstm"), f"--data={words}", *flags, f"--out={run}")
    return run


@pytest.fixture(scope="session")
def text_run(start, small, passage, tmp_path_factory):
    """The folder of a finished run on a text. Not to be written to."""
    run = tmp_path_factory.mktemp("runs") / "transformer-passage"
    flags = ["--steps=6", "--batch-size=4", "--eval-every=3", "--block-size=16"]
    start(*small("transformer"), f"--data={passage}", *flags, f"--out={run}")
    return run


@pytest.fixture
def command(monkeypatch, capsys):
    """command(main, *flags): exit code, stdout and stderr of a command line in this process."""
    # the device "auto" is the CPU, wherever the tests are run
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)

    def go(main, *flags):
        monkeypatch.setattr(sys, "argv", ["command.py", *map(str, flags)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.run(main)
        return left.value.code, *capsys.readouterr()

    return go


@pytest.fixture
def refusal(command):
    """refusal(main, *flags): the sentence that a command line ends with, and nothing else."""

    def go(main, *flags):
        code, _, said = command(main, *flags)
        assert code == 2
        assert said.startswith("error: ") and said.count("\n") == 1 and len(said) > 20
        return said

    return go


@pytest.fixture
def no_plot(monkeypatch):
    """Without the plot, which takes longer than a small run."""
    monkeypatch.setattr(runs, "plot", lambda run, **_: None)


@pytest.fixture(scope="session")
def ladder_results(tmp_path_factory):
    """The path of results as book/results/ladder.json has them, with figures by a formula."""
    stages = {}
    for number, stage in enumerate(nanogpt.STAGES):
        loss, seconds = 2.6 - 0.06 * number, 12.5 + 30 * number
        stages[stage] = {
            "data": "tales" if stage == "gpt" else "names",
            "parameters": 900 * 2 ** number, "seconds": seconds,
            "train_loss": loss - 0.1, "val_loss": loss + 0.02, "test_loss": loss,
            "samples": [f"{stage}</script><b>&{n}" for n in range(1 if stage == "gpt" else 10)],
            "curve": [[n, 512 * n, seconds * n / 5, loss + 0.5 / n] for n in range(1, 6)],
        }
    path = tmp_path_factory.mktemp("results") / "ladder.json"
    path.write_text(json.dumps({"about": {"date": "2026-01-02"}, "stages": stages}), "utf-8")
    return path


@pytest.fixture(scope="session")
def book(ladder_results, tmp_path_factory):
    """The folder of the whole book. Not to be written to."""
    pytest.importorskip("jinja2", reason="the book needs pip install -e '.[book]'")
    from book import site

    out = tmp_path_factory.mktemp("book") / "site"
    site.build(out, ladder_results)
    return out


@pytest.fixture(scope="module")
def chromium():
    """A browser without a window; without one, a skip that says what is missing."""
    api = pytest.importorskip("playwright.sync_api", reason="needs pip install -e '.[browser]'")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not path:
        pytest.skip(f"needs one of {', '.join(BROWSERS)} on the path")
    with api.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=BROWSER_FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium):
    """A page of a profile of its own. It must write no error to the console and ask for nothing
    that is not on this machine."""
    context = chromium.new_context(viewport={"width": 1400, "height": 900}, color_scheme="light")
    context.set_default_timeout(60_000)  # milliseconds; a machine may be busy
    page, faults = context.new_page(), []

    def asked(request):
        if not request.url.startswith(LOCAL):
            faults.append(f"asked for {request.url}")

    def failed(request):
        if "ERR_ABORTED" not in request.failure:  # the page was left, or wanted no more
            faults.append(f"{request.url}: {request.failure}")

    def said(message):
        if message.type in ("error", "warning"):
            faults.append(message.text)

    context.on("request", asked)
    context.on("requestfailed", failed)
    context.on("console", said)
    context.on("weberror", lambda error: faults.append(str(error.error)))
    yield page
    context.close()
    assert not faults
