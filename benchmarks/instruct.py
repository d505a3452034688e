"""Following instructions, the whole chain as `make finetune` has it: pretrain, teach, judge.

    python -m benchmarks.instruct [--seeds 3] [--tokens NAME] [--pretrain N] [--steps N] [--toy]

Each seed is of pretraining and of teaching. Beside the seconds, from start to end of both
processes: what finetune.instruct reports of held-out tales, words and phrasings, greedy. Questions
go beside the best answers by word overlap on the same questions, with a paired interval of the
mean over the seeds.

--tokens compares tokenizers, by fewer steps: byte pairs pack more, so that a tale and its
questions fit into fewer tokens; characters spell, so that a word can be turned around without
knowing by heart what its tokens are made of. Each gets rows that hold the longest tale with its
questions, batches of about as many characters, and as many steps. Rows of other seeds, tokens and
steps stay in the file of results.
"""

import datetime
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.ladder import ROOT, SCRIPT, spread, timed
from data import cli, runs
from finetune import baselines, measures, tasks

CHOICES = {  # flags of pretraining; rows that hold a tale, and about as many characters a batch
    "1024": ["--tokenizer=bpe", "--vocab-size=1024", "--block-size=512", "--batch-size=8"],
    "512": ["--tokenizer=bpe", "--vocab-size=512", "--block-size=640", "--batch-size=8"],
    "characters": ["--tokenizer=char", "--block-size=1280", "--batch-size=9"],
}
SHOWN = 8  # answers of each kind that are kept
TOKENS, PRETRAIN, STEPS = "1024", 500, 3200  # as in the Makefile


def row(name: str, seed: int, args, scratch: Path) -> dict:
    """Pretrain, teach and judge; what came of it."""
    base, taught = scratch / "base", scratch / "taught"
    flags, common = CHOICES[name], ["--device=cpu", f"--seed={seed}"]
    size = ["--batch-size=3"] if args.toy else flags[-1:]  # the least: a row of each kind
    judged = [f"--judged={args.judged}"] if args.judged else []
    seconds = timed([*SCRIPT, "--model=gpt", "--data=tales", *flags[:-1], *size, *common,
                     f"--steps={args.pretrain}", f"--out={base}"])
    seconds += timed([sys.executable, "-m", "finetune.instruct", f"--from={base}", *size, *common,
                      f"--steps={args.steps}", *judged, f"--out={taught}"])
    return {"tokens": name, "seed": seed, "pretrain": args.pretrain, "steps": args.steps,
            "seconds": seconds} | read(taught)


def read(taught: Path) -> dict:
    """What came of a run of finetune.instruct, with some answers of each kind."""
    result = json.loads((taught / "result.json").read_text("utf-8"))
    every = json.loads((taught / "after.json").read_text("utf-8"))["answers"]
    after = result["after"]
    kinds = dict.fromkeys(entry["kind"] for entry in every)
    return {
        "parameters": result["parameters"],
        "bits_per_char": after["tale_loss"]["bits_per_char"],
        "questions": [measures.exact(entry["greedy"], entry["expected"]) for entry in every
                      if entry["kind"] == "question"],
        **{f"strings_{kind}": after["strings"]["greedy"][kind]["by_task"]
           for kind in ("seen", "unseen")},
        "tales": after["tales"]["greedy"],
        "shown": [entry for kind in kinds
                  for entry in some([e for e in every if e["kind"] == kind])],
    }


def some(entries: list[dict]) -> list[dict]:
    """SHOWN of them, from all over."""
    return entries[::max(1, len(entries) // SHOWN)][:SHOWN]


def by_words(number: int) -> np.ndarray:
    """Which of the first questions of the held-out tales word overlap answers, (number,)."""
    parts = tasks.tales()
    overlap = baselines.Overlap([tale["text"] for tale in parts["train"]])
    right = [measures.exact(overlap(tale["text"], asked["question"]), asked["answer"])
             for tale in parts["test"] for asked in tale["questions"]]
    return np.array(right[:number])


def table(rows: list[dict]) -> str:
    """A row for each choice of tokens and steps, over its seeds."""
    lines = ["| tokens | steps: pretraining, teaching | seeds | true tales, bits per character | "
             "string tasks, exact | in other phrasings | questions, exact | ahead of word overlap "
             "by | minutes |", "| --- " * 9 + "|"]
    for key in dict.fromkeys(map(choice, rows)):
        group = [row for row in rows if choice(row) == key]
        shares = [spread([float(np.mean(list(row[f"strings_{kind}"].values()))) for row in group],
                         3) for kind in ("seen", "unseen")]
        right = np.mean([row["questions"] for row in group], 0)
        ahead, (low, high) = measures.paired(right, by_words(len(right)))
        name = key[0] if key[0] == "characters" else f"{int(key[0]):,} byte pairs"
        lines.append(" | ".join([
            f"| {name}", f"{key[1]:,}, {key[2]:,}", str(len(group)),
            spread([row["bits_per_char"] for row in group], 3), *shares,
            spread([float(np.mean(row["questions"])) for row in group], 3),
            f"{ahead:+.3f} ({low:+.3f} to {high:+.3f})",
            f"{minutes(group)} |"]))
    return "\n".join(lines)


def minutes(rows: list[dict]) -> str:
    """What the chain took, of the rows whose processes had the most threads."""
    most = max(row["environment"]["threads"] for row in rows)
    taken = [row["seconds"] for row in rows if row["environment"]["threads"] == most]
    return f"{np.mean(taken) / 60:.0f} on {most} thread{'s' * (most > 1)}"


def choice(row: dict) -> tuple[str, int, int, int]:
    """What rows have in common that are of one choice and differ by their seeds."""
    return row["tokens"], row["pretrain"], row["steps"], len(row["questions"])


def chosen(rows: list[dict]) -> list[dict]:
    """The rows of what `make finetune` does, by their seeds."""
    rows = [row for row in rows if choice(row)[:3] == (TOKENS, PRETRAIN, STEPS)]
    return sorted(rows, key=lambda row: row["seed"])


def main() -> None:
    parser = cli.Parser(prog="python -m benchmarks.instruct", description=__doc__)
    cli.add(parser, "seeds", "so many of them (default 3)")
    cli.add(parser, "first", "the first of them (default 0)")
    cli.add(parser, "tokens", f"{', '.join(CHOICES)} or all (default {TOKENS})", str,
            choices=[*CHOICES, "all"])
    cli.add(parser, "pretrain", f"steps of pretraining (default {PRETRAIN})")
    cli.add(parser, "steps", f"of teaching (default {STEPS:,})")
    cli.add(parser, "judged", "tales, and prompts of each string task (default 100, 20)")
    cli.add(parser, "toy", "as small as can be", bool)
    cli.add(parser, "out", "(default benchmarks/results/instruct.json)", Path)
    parser.set_defaults(seeds=3, first=0, tokens=TOKENS, pretrain=PRETRAIN, steps=STEPS)
    args = parser.parse_args()
    if args.toy and not args.out:
        raise ValueError("--toy is not for the results: say where to, by --out=FILE.")
    if args.toy:
        args.pretrain, args.steps, args.judged = 2, 2, 1
    out = args.out or ROOT / "benchmarks/results/instruct.json"
    rows = json.loads(out.read_text("utf-8"))["rows"] if out.exists() else []
    when = {"date": datetime.date.today().isoformat(), "environment": runs.environment(),
            "toy": bool(args.toy)}
    for name in CHOICES if args.tokens == "all" else [args.tokens]:
        for seed in range(args.first, args.first + args.seeds):
            with tempfile.TemporaryDirectory() as folder:
                new = row(name, seed, args, Path(folder)) | when
            rows = [old for old in rows if (choice(old), old["seed"]) != (choice(new), seed)]
            rows.append(new)
            runs.write_json(out, {"rows": rows})
            print(table([new]).splitlines()[-1], flush=True)
    print(table(rows))


if __name__ == "__main__":
    cli.run(main)
