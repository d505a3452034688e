"""What the articles show of trained models: python -m book.results

Three parts, of which what is there already is not made again:

    ladder      trains each stage by its bare command (the seven on the names, gpt on the tales)
                and writes what it reaches to book/results/ladder.json
    numpy       the same of the stages in NumPy, the bigram by counting, to numpy.json
    pictures    draws the losses of all stages as book/results/ladder.svg, the inside of each
                trained model as STAGE.svg, what the recurrent ones hear of the tokens before as
                gradients.svg, and the diagrams of the short articles

A stage is done whose result is of the settings, the code and the parameters that its command has
today. --fresh makes it anew; what was stopped is gone on with, without that flag. The runs stay in
runs/book, for the pictures need them; state.json beside them says of which code they are, and what
of --fresh is still to be done.

The articles hold these numbers: fill them in anew when they change (python -m book.marks). The
tables of benchmarks are of benchmarks/results, whose scripts need clones of the projects that we
are measured beside, and are not made here.
"""

import argparse
import datetime
import hashlib
import json
import shutil
import sys
import time
from dataclasses import asdict, fields
from pathlib import Path

import data
import nanogpt
import sample
import train
from book import clone
from data import cli, runs
from makemore import diff
from nanogpt import STAGES
from nanogpt.settings import Config, settle
from nanogpt.settings import make_parser as settings_parser

ROOT = Path(__file__).parents[1]
PARTS = ("ladder", "numpy", "pictures")
IN_NUMPY = {"bigram-numpy": ("--model=bigram", "--backend=numpy", "--count"),
            "mlp-numpy": ("--model=mlp", "--backend=numpy")}
RECURRENT = ("rnn", "lstm", "gru")
NUM, LENGTH = 10, 500  # samples of lines; tokens of the one sample of a text
KEPT = (
    "data", "parameters", "steps", "best_step", "tokens", "train_loss", "val_loss", "test_loss",
    "bits_per_char", "bits_per_byte", "seconds", "tokens_per_second", "flops_per_token", "seed",
)


def command(stage: str) -> list[str]:
    """The flags of the bare command, on a CPU wherever it is run; of a stage in NumPy, its own."""
    return list(IN_NUMPY.get(stage, (f"--model={stage}", "--device=cpu")))


def settings_of(flags: list[str]) -> dict:
    """All settings that train.py has with these flags, and what tells its data from another."""
    args = settings_parser().parse_args(flags)
    source = args.data or ("tales" if args.model == "gpt" else "names")
    dataset = data.load(source, bool(args.lines))
    config = settle(args, source, dataset, {})
    return asdict(config) | {"fingerprint": runs.fingerprint(dataset.splits)}


def model_of(settings: dict) -> dict:
    """What tells the model of today from one that was made by other code: its parameters, and a
    hash of the lines of its file that are code."""
    stage = settings["model"]
    how = settings["tokenizer"], settings["vocab_size"]
    tokenizer = data.make_tokenizer(*how, data.load(settings["data"], settings["lines"]).splits)
    sizes = (tokenizer.vocab_size, settings["block_size"])
    model = nanogpt.build(stage, *sizes, settings["backend"], **settings["sizes"])
    code = "\n".join(diff.code_of(diff.source(stage, settings["backend"])))
    return {"parameters": sum(p.numel() for p in model.parameters()),
            "code": hashlib.sha256(code.encode()).hexdigest()}


def agrees(saved: dict, settings: dict) -> bool:
    """Whether a run had these settings."""
    usual = {field.name: field.default for field in fields(Config)}  # newer than what was saved
    return {name: saved.get(name, usual.get(name)) for name in settings} == settings


def is_done(row: dict, settings: dict, model: dict) -> bool:
    """Whether a stage's result is of today. One from before code was noted: by its parameters."""
    made = {"parameters": row["parameters"], "code": row.get("code", model["code"])}
    return agrees(row["settings"], settings) and made == model


def state_of(run: Path, settings: dict, model: dict, code: str | None) -> str:
    """"done", "stopped" or, for no run or one with other settings or of another model, "none".

    code: the hash of what the run was begun with, if that is known.
    """
    saved = read(run / "config.json")
    if not agrees(saved, settings) or code not in (None, model["code"]):
        return "none"
    if (result := read(run / "result.json")) and (run / "best.pt").is_file():
        return "done" if result["parameters"] == model["parameters"] else "none"
    return "stopped" if (run / "last.pt").is_file() else "none"


def read(path: Path) -> dict:
    """A JSON file; {} where there is none, or a damaged one."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}


class State:
    """What state.json says of the folder of the runs, written whenever it changes.

    code: of each stage the hash of the code that its run was begun with. fresh: the stages that are
    still to be made anew, and of each whether its new run has "begun".
    """

    def __init__(self, folder: Path):
        self.path = folder / "state.json"
        saved = read(self.path)
        self.code: dict[str, str] = saved.get("code", {})
        self.fresh: dict[str, bool] = saved.get("fresh", {})

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        runs.write_json(self.path, {"code": self.code, "fresh": self.fresh})

    def begin(self, stage: str, code: str) -> None:
        self.code[stage] = code
        if stage in self.fresh:
            self.fresh[stage] = True
        self.write()


def trained(stage: str, settings: dict, model: dict, state: State) -> None:
    """See to it that the run folder holds a finished run. Errors as of train.py."""
    run = state.path.parent / stage
    anew = state.fresh.get(stage) is False
    found = "none" if anew else state_of(run, settings, model, state.code.get(stage))
    if found == "done":
        print(f"{run} holds it already")
    elif found == "stopped":
        train.resume_run(settings_parser().parse_args([f"--resume={run}"]))
    else:
        shutil.rmtree(run, ignore_errors=True)
        state.begin(stage, model["code"])
        train.new_run(settings_parser().parse_args([*command(stage), f"--out={run}"]))


def summary(run: Path, settings: dict) -> dict:
    """What the articles show of a finished run. Losses in nats per token.

    about: when it was finished, and with which versions and code. curve: [step, tokens, seconds,
    validation loss] of every evaluation. known_samples: those that stand in the training set.
    """
    result = json.loads((run / "result.json").read_text("utf-8"))
    checkpoint = runs.load_checkpoint(run)
    model, tokenizer = sample.restore(checkpoint)
    config = checkpoint["config"]
    day = datetime.date.fromtimestamp((run / "result.json").stat().st_mtime).isoformat()
    environment = json.loads((run / "config.json").read_text("utf-8"))["environment"]
    lines = config["kind"] == "lines"
    num, length = (NUM, 2 * config["block_size"]) if lines else (1, LENGTH)
    samples = sample.texts(model, tokenizer, "", num, length, config["separated"], seed=0)
    known = sample.training_lines(config) if lines else set()
    curve = [[line["step"], line["tokens"], line["seconds"], round(line["val_loss"], 6)]
             for line in runs.read_metrics(run)]
    return {
        "about": {"date": day, "environment": environment},
        **{name: result[name] for name in KEPT},
        "samples": samples,
        "known_samples": [text for text in samples if text in known],
        "curve": curve,
        "settings": settings,
    }


def sizes(source: str) -> dict[str, int]:
    """The lines or documents of each split of a set."""
    return {name: data.size(part)[0] for name, part in data.load(source).splits.items()}


def ladder(stages: list[str], path: Path, kept: Path, fresh: bool) -> None:
    """Train the stages, where need be, and put what they reach into a file at the end.

    Until then the run folders hold it, so nothing is lost if this is stopped; and all runs are of
    the same commit, which a change of that file would spoil.
    """
    results = json.loads(path.read_text("utf-8")) if path.is_file() else {"stages": {}}
    done, state = results["stages"], State(kept)
    if fresh:
        state.fresh |= dict.fromkeys(stages, False)
        state.write()
    for number, stage in enumerate(stages, 1):
        say = f"[{number} of {len(stages)}] {stage}"
        settings = settings_of(command(stage))
        model = model_of(settings)
        old = stage not in done or not is_done(done[stage], settings, model)
        if not old and stage not in state.fresh:
            print(f"{say}: done on {done[stage]['about']['date']}; --fresh makes it anew")
            continue
        print(f"\n{say}: python train.py {' '.join(command(stage))}", flush=True)
        began = time.monotonic()
        trained(stage, settings, model, state)
        done[stage] = summary(kept / stage, settings)
        if stage in state.code:  # else the run is from before code was noted
            done[stage]["code"] = state.code[stage]
        results["about"] = done[stage]["about"]
        print(f"{say}: {time.monotonic() - began:.0f} s", flush=True)
    results["stages"] = {stage: done[stage] for stage in (*STAGES, *IN_NUMPY) if stage in done}
    sets = [source for source in data.SETS if any(row["data"] == source for row in done.values())]
    results["data"] = {source: sizes(source) for source in sets}
    order = ("about", "data", "stages")
    runs.write_json(path, {name: results[name] for name in order})
    if state.fresh:
        state.fresh = {stage: begun for stage, begun in state.fresh.items() if stage not in stages}
        state.write()
    print(f"\n{table(results['stages'])}\nIn {path}.")
    if state.fresh:
        print(f"Still to be made anew: {', '.join(state.fresh)} (python -m book.results).")


def table(stages: dict[str, dict]) -> str:
    """What the stages reach, for the terminal."""
    lines = [f"{'stage':<12} {'parameters':>10} {'test loss':>10} {'seconds':>8}"]
    for name, row in stages.items():
        lines.append(f"{name:<12} {row['parameters']:>10,} {row['test_loss']:>10.4f} "
                     f"{row['seconds']:>8.1f}")
    return "\n".join(lines)


def amiss(run: Path, row: dict | None) -> str:
    """Why a run is not to be drawn beside a stage's row in ladder.json, or "": it is what the row
    tells of."""
    result = read(run / "result.json")
    if not result or not (run / "best.pt").is_file():
        return f"no finished run in {run} to draw; --parts ladder --fresh makes it"
    if not row or row["val_loss"] != result["val_loss"]:
        return f"{run} is another run than that in ladder.json; --parts ladder --fresh makes both"
    return ""


def pictures(stages: list[str], folder: Path, kept: Path) -> None:
    """Draw what is inside of the trained models, those of which ladder.json tells."""
    from book import diagrams, figures  # matplotlib is slow to import, and ladder does without

    every = read(folder / "ladder.json").get("stages", {})
    for number, stage in enumerate(stages, 1):
        say, path = f"[{number} of {len(stages)}] {stage}", folder / f"{stage}.svg"
        if fault := amiss(kept / stage, every.get(stage)):
            print(f"{say}: {fault}")
            continue
        began = time.monotonic()
        figures.draw(stage, *sample.load_run(kept / stage), path)
        print(f"{say}: {time.monotonic() - began:.0f} s, in {path}", flush=True)
    whole = not any(amiss(kept / stage, every.get(stage)) for stage in RECURRENT)
    if whole and set(RECURRENT) & set(stages):
        loaded = {stage: sample.load_run(kept / stage) for stage in RECURRENT}
        models = {stage: model for stage, (model, _) in loaded.items()}
        tokenizer = loaded[RECURRENT[0]][1]  # all are trained on the same names
        figures.gradients(models, tokenizer, folder / "gradients.svg")
        print(f"gradients of {', '.join(RECURRENT)}: in {folder / 'gradients.svg'}", flush=True)
    names = {stage: result for stage, result in every.items() if result["data"] == "names"}
    if names:
        figures.ladder(names, folder / "ladder.svg")
        print(f"losses of {', '.join(names)}: in {folder / 'ladder.svg'}", flush=True)
    diagrams.draw_all(folder)
    print(f"diagrams of the short articles: in {folder}", flush=True)


def make_parser() -> cli.Parser:
    title = __doc__.split("\n")[0]
    parser = cli.Parser(prog="python -m book.results", description=title)
    parser.add_argument("--parts", nargs="+", choices=PARTS, metavar="PART", default=list(PARTS),
                        help=f"of {', '.join(PARTS)} (default all)")
    parser.add_argument("--stages", nargs="+", choices=STAGES, metavar="STAGE",
                        default=list(STAGES), help="default all; others stay as they are")
    parser.add_argument("--fresh", action="store_true",
                        help="train anew what is there already; stopped, go on without this flag")
    parser.add_argument("--out", type=Path, default=ROOT / "book/results", metavar="DIR",
                        help="of the results (default book/results)")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/book", metavar="DIR",
                        help="of the run folders (default runs/book)")
    return parser


def make(args: argparse.Namespace) -> None:
    """Make the parts that are asked for. Errors as of train.py."""
    args.out.mkdir(parents=True, exist_ok=True)
    for part in args.parts:
        print(f"{part}:", flush=True)
        if part == "ladder":
            ladder(args.stages, args.out / "ladder.json", args.runs, args.fresh)
        elif part == "numpy":
            stages = [name for name in IN_NUMPY if name.removesuffix("-numpy") in args.stages]
            ladder(stages, args.out / "numpy.json", args.runs, args.fresh)
        else:
            pictures(args.stages, args.out, args.runs)
    print("\nThe articles show these results: python -m book.marks puts them in.")


def main() -> int:
    args = make_parser().parse_args()
    clone.check()
    try:
        make(args)
    except train.Stopped as stopped:
        print(f"{stopped}\nOr go on with all of it: python -m book.results")
        return 130
    except train.Diverged as diverged:
        print(f"error: {diverged}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    cli.run(main)
