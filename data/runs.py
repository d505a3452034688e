"""Run folders and their files, written so that no crash costs what was there before.

A run folder holds config.json, metrics.jsonl, last.pt, best.pt, loss.png, samples.txt, result.json.
PyTorch is imported where checkpoints are: the comparisons in NumPy write folders without it.
"""

import hashlib
import io
import json
import os
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy

FORMAT = 1  # of checkpoints; a change that old readers would misread raises it
CHECKPOINTS = ("best.pt", "last.pt")


def environment() -> dict:
    """What a run depends on besides its settings: the commit of the code, versions, threads."""
    import torch

    here = dict(cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=10)
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], **here).stdout.strip()
        if subprocess.run(["git", "status", "--porcelain", "-uno"], **here).stdout:
            commit += ", changed"
    except (OSError, subprocess.SubprocessError):
        commit = None  # no git here, or no repository
    return {
        "commit": commit,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
    }


def fingerprint(splits: dict) -> str:
    """What tells whether data is still the same. splits: those of a Dataset."""
    content = {split: getattr(part, "digest", part) for split, part in splits.items()}
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def make_run(path: Path, exactly: bool = False) -> Path:
    """Make and return a new folder: path, or path-2, path-3, ... where it exists already.

    ValueError: exactly is asked for and the path has something in it.
    """
    if exactly:
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            more = f"or go on with it: --resume={path}" if present(path) else (
                "or remove it: it has no checkpoint to go on from")
            raise ValueError(f"{path} exists already and would be overwritten; choose another "
                             f"--out, {more}.")
        path.mkdir(parents=True, exist_ok=True)
        return path
    number = 1
    while True:
        candidate = path if number == 1 else path.with_name(f"{path.name}-{number}")
        try:
            candidate.mkdir(parents=True)
            return candidate
        except FileExistsError:
            number += 1


def newest_run(model: str, root: Path = Path("runs")) -> Path:
    """The run of that model in root whose checkpoint is the newest. ValueError: there is none."""
    found = []
    for config in root.glob("*/config.json"):
        written = [(config.parent / name).stat().st_mtime for name in present(config.parent)]
        if written and model_of(config) == model:
            found.append((max(written), config.parent))
    if not found:
        raise ValueError(
            f"there is no run of {model} with a checkpoint in {root}/; train one first: "
            f"python train.py --model={model}"
        )
    return max(found)[1]


def model_of(config: Path) -> str | None:
    """The model that a config.json names, or None where it is damaged, or of a finetuned run."""
    try:
        settings = json.loads(config.read_text("utf-8"))
        return None if settings.get("finetune") else settings.get("model")
    except (OSError, ValueError, AttributeError):
        return None


def present(run: Path) -> list[str]:
    """The names of the checkpoints that a run folder has, best first."""
    return [name for name in CHECKPOINTS if (run / name).is_file()]


def write(path: Path, content: bytes | str | Callable[[BinaryIO], None]) -> None:
    """Write a file whole or not at all: under another name, flushed to the disk, then renamed.

    content: what it is to hold, or a function that writes it.
    OSError: the disk is full, say; what was there under the name before is still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__  # torch.save hides it
        if not isinstance(cause, OSError):
            raise
        kept = " The file of that name from before is untouched." if path.exists() else ""
        raise OSError(f"{path} could not be written: {cause.strerror or cause}.{kept}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: dict) -> None:
    write(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def sweep(run: Path) -> None:
    """Remove what a process that was killed in the middle of `write` left behind."""
    for temporary in run.glob(".*.part"):
        temporary.unlink()


def append_metrics(run: Path, line: dict) -> None:
    path = run / "metrics.jsonl"
    try:
        with open(path, "a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(f"{path} could not be written: {error.strerror}.") from error


def read_metrics(run: Path, until: int | None = None) -> list[dict]:
    """The evaluations so far; a last line that was cut off while being written does not count."""
    path = run / "metrics.jsonl"
    lines = []
    for text in path.read_text("utf-8").splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            break
        if until is None or line["step"] <= until:
            lines.append(line)
    return lines


def cut_metrics(run: Path, step: int) -> None:
    """Take back the evaluations after step, which a resumed run makes again."""
    lines = read_metrics(run, until=step)
    write(run / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


def save_checkpoint(path: Path, checkpoint: dict) -> None:
    """Write a dict of plain values and tensors. OSError as in `write`."""
    import torch

    # straight into the file: a copy in memory would be as large as the model and its optimizer
    write(path, lambda file: torch.save({"format": FORMAT, **checkpoint}, file))


def mend(run: Path, path: Path, checkpoint: dict) -> dict:
    """Make the run folder what it was when that checkpoint was written; the progress then."""
    progress = checkpoint["progress"]
    try:
        load_checkpoint(run / "best.pt")
    except ValueError:
        print(f"note: best.pt is missing or damaged; {path.name} takes its place.")
        best = {"best_loss": progress["val_loss"], "best_step": progress["step"], "since_best": 0}
        progress |= best
        save_checkpoint(run / "best.pt", checkpoint)
    sweep(run)
    if progress["step"] < checkpoint["config"]["steps"]:
        (run / "result.json").unlink(missing_ok=True)  # it would speak of other weights from now on
    cut_metrics(run, progress["step"])
    return progress


def load_checkpoint(path: Path) -> dict:
    """Read what save_checkpoint wrote, onto the CPU. path: a checkpoint, or a run folder's best.

    ValueError: there is none, it is damaged (and whether the other of best and last is whole), or
    it was written by another version.
    """
    path = Path(path)
    if path.is_dir():
        if not present(path):
            raise ValueError(f"{path} has no checkpoint, neither best.pt nor last.pt.")
        path = path / present(path)[0]
    if not path.is_file():
        raise ValueError(f"there is no run folder or checkpoint at {path}.")
    checkpoint = _read(path)
    if checkpoint is None:
        others = [name for name in present(path.parent) if name != path.name]
        whole = [path.parent / name for name in others if _read(path.parent / name)]
        offer = f"{whole[0]} is whole: name that." if whole else "There is no whole one beside it."
        raise ValueError(f"{path} is damaged, or no checkpoint of this project. {offer}")
    if checkpoint.get("format") != FORMAT:
        raise ValueError(
            f"{path} was written by another version of this project, in format "
            f"{checkpoint['format']}; this one reads format {FORMAT}."
        )
    return checkpoint


def _read(path: Path) -> dict | None:
    import torch

    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:
        raise
    except Exception:  # what a damaged pickle makes torch.load raise knows no bounds
        return None
    return checkpoint if isinstance(checkpoint, dict) and "format" in checkpoint else None


def plot(run: Path, per: str = "token") -> None:
    """Draw metrics.jsonl, if there is an evaluation in it, as loss.png. per: what has a loss."""
    lines = read_metrics(run)
    if not lines:
        return
    figure = new_figure(7, 4.2)
    axes = figure.subplots()
    trained = [line for line in lines if line["train_loss"] is not None]
    for name, label, points in (
        ("train_loss", "train, while it learns", trained), ("val_loss", "validation", lines)
    ):
        axes.plot([x["step"] for x in points], [x[name] for x in points], label=label)
    best = min(lines, key=lambda line: line["val_loss"])
    axes.plot(best["step"], best["val_loss"], "o", color="C1")
    label, place = f"{best['val_loss']:.4f}", (best["step"], best["val_loss"])
    axes.annotate(label, place, (0, 8), textcoords="offset points", ha="right")
    axes.set(xlabel="step", ylabel=f"loss (nats per {per})")
    axes.set_title(run.name, parse_math=False)
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, run / "loss.png")


def new_figure(width: float, height: float):
    """An empty matplotlib Figure, in inches."""
    from matplotlib.figure import Figure  # slow to import, and not pyplot: that wants a screen

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure, path: Path) -> None:
    """Write a figure as a PNG. OSError as in `write`."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write(path, buffer.getbuffer())
