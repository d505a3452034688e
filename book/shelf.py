"""The runs that the page to play with offers (play.py), and those of them that are in memory."""

import argparse
import json
import math
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import data
import sample
from data import runs
from makemore.model import LanguageModel
from nanogpt import STAGES

KEPT = 4  # models in memory


@dataclass
class Loaded:
    """A run that is ready: its model is where it computes, its kind as in the config."""

    model: LanguageModel
    tokenizer: data.Tokenizer
    config: dict
    val_loss: float | None


class Shelf:
    """The runs on offer by their names; the models that were asked for last stay in memory."""

    def __init__(self, args: argparse.Namespace, root: Path = Path("runs")):
        """args: of sample.py; without runs of its own (--run) all in root, and one folder deeper.

        ValueError: there is none.
        """
        self.args, self.root = args, root
        self.known: dict[str, Path] = {}
        self.loaded: OrderedDict[tuple[str, int], Loaded] = OrderedDict()
        for run in args.run or []:
            if not (run.is_file() or run.is_dir() and runs.present(run)):
                raise ValueError(f"there is no run folder or checkpoint at {run}.")
            if not settings_of(run):
                raise ValueError(f"{run} is not for the page: it sorts texts, or the config.json "
                                 "beside it is damaged.")
        if not self.offered():
            raise ValueError(f"there is no run with a checkpoint in {root}/; train one first: "
                             "python train.py --model=rnn")

    def paths(self) -> dict[str, Path]:
        """Name -> where it is, of all runs that are there."""
        if self.args.run:
            names = {str(run): run for run in self.args.run}
        else:
            folders = [path.parent for depth in ("*", "*/*")
                       for path in self.root.glob(f"{depth}/config.json")]
            names = {folder.relative_to(self.root).as_posix(): folder
                     for folder in sorted(folders) if runs.present(folder)}
        return names

    def offered(self) -> list[dict]:
        """The runs in the order of the ladder, for JSON. Those that sort texts are left out."""
        paths = self.paths()  # looked at anew whenever the page is loaded
        # each is read once, for it may be removed meanwhile
        settings = {name: settings_of(path) for name, path in paths.items()}
        found = [{"name": name, **about} for name, about in settings.items() if about]
        self.known = {name: paths[name] for name, about in settings.items() if about}
        return sorted(found, key=lambda run: (STAGES.index(run["stage"]), run["name"]))

    def open(self, name: str) -> Loaded:
        """The run of that name. KeyError: none. ValueError: it is damaged, or cannot be placed."""
        path = self.known[name]
        file = path if path.is_file() else path / [*runs.present(path), ""][0]
        if not file.is_file():
            raise KeyError(name)  # it was there when the page was loaded
        key = name, file.stat().st_mtime_ns  # a run may be trained on while the page is open
        if key not in self.loaded:
            checkpoint = runs.load_checkpoint(file)
            model, tokenizer = sample.restore(checkpoint)
            sample.place(model, checkpoint["config"], self.args)
            loss = checkpoint["progress"].get("val_loss", math.nan)
            loss = loss if math.isfinite(loss) else None
            self.loaded[key] = Loaded(model, tokenizer, checkpoint["config"], loss)
        self.loaded.move_to_end(key)
        while len(self.loaded) > KEPT:
            self.loaded.popitem(last=False)
        return self.loaded[key]


def settings_of(run: Path) -> dict | None:
    """Stage and data of a run, by its config.json; None where it is damaged, or sorts texts."""
    folder = run if run.is_dir() else run.parent
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        sorts = (config.get("finetune") or {}).get("kind") == "classify"
        if sorts or config["model"] not in STAGES:
            return None
        return {"stage": config["model"], "data": Path(config["data"]).name or config["data"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
