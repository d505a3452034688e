"""Which tokens for following instructions: the whole chain with characters and with byte pairs.

    python -m benchmarks.instruct [--pretrain 300] [--steps 600] [--judged 50] [--toy]

Byte pairs pack more: a tale and its questions fit into fewer tokens. Characters spell: to turn a
word around a model need not know by heart what its tokens are made of. Each choice gets rows that
hold the longest tale with its questions, batches of about as many characters, and as many steps.
Beside the seconds: what finetune.instruct reports of held-out tales, words and phrasings, greedy.
"""

import datetime
import json
import sys
import tempfile
from pathlib import Path

from benchmarks.ladder import ROOT, SCRIPT, timed
from data import cli, runs

CHOICES = {  # flags of pretraining; rows that hold a tale, and about as many characters a batch
    "characters": ["--tokenizer=char", "--block-size=1280", "--batch-size=9"],
    "512 byte pairs": ["--tokenizer=bpe", "--vocab-size=512", "--block-size=640",
                       "--batch-size=8"],
    "1,024 byte pairs": ["--tokenizer=bpe", "--vocab-size=1024", "--block-size=512",
                         "--batch-size=8"],
}


def row(name: str, flags: list[str], args, scratch: Path) -> dict:
    """Pretrain, teach and judge; what came of it."""
    base, taught = scratch / "base", scratch / "taught"
    common = ["--device=cpu", f"--seed={args.seed}"]
    size = flags[-1:]
    if args.toy:
        size = ["--batch-size=3"]  # the least: a row of each kind
    first = timed([*SCRIPT, "--model=gpt", "--data=tales", *flags[:-1], *size, *common,
                   f"--steps={args.pretrain}", f"--out={base}"])
    second = timed([sys.executable, "-m", "finetune.instruct", f"--from={base}", *size, *common,
                    f"--steps={args.steps}", f"--judged={args.judged}", f"--out={taught}"])
    result = json.loads((taught / "result.json").read_text("utf-8"))
    after = result["after"]
    return {
        "name": name, "pretraining_seconds": first, "finetuning_seconds": second,
        "parameters": result["parameters"],
        "bits_per_char": after["tale_loss"]["bits_per_char"],
        "questions": after["questions"]["greedy"]["exact"],
        **{f"strings_{kind}": after["strings"]["greedy"][kind]["exact"]
           for kind in ("seen", "unseen")},
    }


def table(rows: list[dict]) -> str:
    lines = ["| tokens | true tales, bits per character | questions, exact | string tasks, exact | "
             "in other phrasings | seconds, both |", "| --- " * 6 + "|"]
    for row in rows:
        shares = [f"{row[name]['mean']:.3f} ({row[name]['interval'][0]:.3f} to "
                  f"{row[name]['interval'][1]:.3f})"
                  for name in ("questions", "strings_seen", "strings_unseen")]
        seconds = row["pretraining_seconds"] + row["finetuning_seconds"]
        lines.append(" | ".join([f"| {row['name']}", f"{row['bits_per_char']:.4f}", *shares,
                                 f"{seconds:.0f} |"]))
    return "\n".join(lines)


def main() -> None:
    parser = cli.Parser(prog="python -m benchmarks.instruct", description=__doc__)
    cli.add(parser, "pretrain", "steps of pretraining (default 300)")
    cli.add(parser, "steps", "of finetuning (default 600)")
    cli.add(parser, "judged", "tales, and prompts of each string task (default 50)")
    cli.add(parser, "seed", "(default 0)")
    cli.add(parser, "toy", "as small as can be", bool)
    cli.add(parser, "out", "(default benchmarks/results/instruct.json)", Path)
    parser.set_defaults(pretrain=300, steps=600, judged=50, seed=0)
    args = parser.parse_args()
    if args.toy:
        args.pretrain, args.steps, args.judged = 2, 2, 1
    rows = []
    for name, flags in CHOICES.items():
        with tempfile.TemporaryDirectory() as folder:
            rows.append(row(name, flags, args, Path(folder)))
        about = {"date": datetime.date.today().isoformat(), "environment": runs.environment(),
                 "command": sys.argv[1:], "toy": bool(args.toy)}
        out = args.out or ROOT / "benchmarks/results/instruct.json"
        runs.write_json(out, about | {"rows": rows})
        print(table(rows).splitlines()[-1], flush=True)
    print(table(rows))


if __name__ == "__main__":
    cli.run(main)
