"""Runs that are gone on with: what their checkpoints hold, how one is opened, stopped and ended."""

from dataclasses import asdict
from pathlib import Path

from torch import nn

import data
import sample
import train
from data import runs
from nanogpt.settings import Config

from .adapt import merge
from .pretrained import FORMAT, Pretrained, check_format, pretraining_text


def about_of(
    pretrained: Pretrained, config: Config, finetune: dict, learned: dict | None = None
) -> dict:
    """What goes into every checkpoint of a finetuned run, beside the weights. learned: see seen.py.
    """
    text = pretrained.text
    about = {
        "kind": text.kind if text else "text", "separated": True,
        "fingerprint": runs.fingerprint(text.splits) if text else None,
    }
    before = {"pretrained_block_size": pretrained.block_size,
              "pretrained_optimizer": pretrained.optimizer}
    own = {"finetune": finetune | before | {"format": FORMAT}}
    return {"config": asdict(config) | about | own, "learned": learned,
            "tokenizer": pretrained.tokenizer.to_dict()}


def open_run(path: Path, steps: int | None, kind: str) -> tuple[Path, Path, dict]:
    """The folder of a finetuned run, and the checkpoint that it is to go on from: where and what.

    ValueError: no such run, or more steps made than asked for.
    """
    run = path if path.is_dir() else path.parent
    source = run / "last.pt" if path == run and (run / "last.pt").exists() else path
    checkpoint = runs.load_checkpoint(source)
    if checkpoint["config"].get("finetune", {}).get("kind") != kind:
        raise ValueError(f"{run} is no run of finetune.{kind}.")
    check_format(checkpoint["config"])
    if checkpoint.get("merged"):
        raise ValueError(f"{source} is what a run that has ended is used by; to go on it takes the "
                         f"run's last.pt{', which is not there' * (path == run)}.")
    step = checkpoint["progress"]["step"]
    if steps is not None:
        if steps < step:
            raise ValueError(f"{run} has made {step} steps, so --steps={steps} is too few.")
        checkpoint["config"]["steps"] = steps
        checkpoint["progress"]["since_best"] = 0  # new steps, new patience
    return run, source, checkpoint


def mend(run: Path, source: Path, checkpoint: dict) -> None:
    """Make the folder what it was at this checkpoint: once all is known to be in order."""
    checkpoint["progress"] = runs.mend(run, source, checkpoint)
    print(f"going on at step {checkpoint['progress']['step']}")


def pretrained_of(checkpoint: dict, config: Config) -> Pretrained:
    """What a finetuned run began with, from its own checkpoint; without the weights."""
    saved = checkpoint["config"]
    text, note = pretraining_text(saved, saved["finetune"]["replay_data"])
    tokenizer = data.tokenizer_from_dict(checkpoint["tokenizer"])
    before = {name: saved["finetune"][f"pretrained_{name}"] for name in ("block_size", "optimizer")}
    return Pretrained(Path(saved["finetune"]["from"]), config, tokenizer, {}, text=text, note=note,
                      **before)


def stopped(error: BaseException, run: Path, command: str) -> Exception:
    """What to raise to the user where a training ended early."""
    if isinstance(error, train.Diverged):
        said = str(error).split(" Try again")[0]
        return train.Diverged(f"{said} Try again with a lower --lr.")
    if not runs.present(run):
        return train.Stopped("stopped before anything was saved.")
    said = str(error) or "stopped at once; what was saved before is kept."
    return train.Stopped(f"{said} Go on with: python -m finetune.{command} --resume={run}")


def pool_of(saved: dict) -> str:
    """What the head of a run reads; of runs from before there was a choice the last token."""
    return saved.get("pool", "last")


def as_tuning(saved: dict) -> dict:
    return saved | {"matrices": tuple(saved["matrices"])}


def settle(model: nn.Module, run: Path) -> None:
    """The best weights of a run into its model, merged, and these into best.pt."""
    checkpoint = runs.load_checkpoint(run / "best.pt")
    weights = sample.weights_of(checkpoint)
    if checkpoint.get("merged"):
        merge(model)
        model.load_state_dict(weights)
        return
    model.load_state_dict(weights)
    merge(model)
    state = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    runs.save_checkpoint(run / "best.pt", checkpoint | {"merged": True, "model": state,
                                                        "average": {}})
