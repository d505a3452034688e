"""python -m makemore: the ladder as a table; diff: what changes between its stages, or between the
pieces they are made of; compare: what one choice is worth."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import TextIO

from data.cli import Parser, add, nearest, run

from . import STAGES, diff, stage_class
from .diff import code_lines, idea, parameters, source
from .without_torch import compare

HEAD = ["stage", "parameters", "code", "lines", "test loss", "data", "run"]
NUMBERS = {1, 2, 3}  # columns of HEAD that stand at the right


def ladder(root: Path, width: int) -> str:
    """A row a stage, with its newest result in the folder root; ideas go beneath if too wide."""
    results, broken = newest_results(root)
    rows, ideas = [HEAD], ["position t knows"]
    for stage in STAGES:
        text = source(stage)
        size, *result = results.get(stage) or [f"{parameters(stage):,}", "-", "-", "-"]
        rows.append([stage, size, str(code_lines(text)), str(len(text.splitlines())), *result])
        ideas.append(idea(stage))
    longest = max(map(len, STAGES))
    both = list(zip(rows, ideas, strict=True))
    lines = table([[f"{row[0]:<{longest}}  {what}", *row[1:]] for row, what in both])
    if max(map(len, lines)) > width:
        lines = [f"{line}\n    {what}" for line, what in zip(table(rows), ideas, strict=True)]
    untrained = [stage for stage in STAGES if stage not in results]
    lines += [
        "",
        "code: lines but blanks, comments and docstrings; parameters: of the run, else on names",
        *(f"note: {path} is not a whole result and is left out" for path in broken),
        "",
        f"train one:     python train.py --model={(untrained or list(STAGES)[-1:])[0]}",
        "what changes:  python -m makemore diff rnn lstm    (from each to the next: diff alone)",
        "play with two: python sample.py --web",
    ]
    if (diff.ROOT / "Makefile").is_file():  # not where the package alone is installed
        lines.append("read it all:   make book")
    return "\n".join(lines)


def newest_results(root: Path) -> tuple[dict[str, list[str]], list[Path]]:
    """For each stage the parameters, loss, data and folder of its newest run with a result.json.

    Also the files that are no such result: a run of long ago should not spoil the table.
    """
    found, broken = [], []
    for path in root.glob("*/result.json"):
        try:
            if (result := read_result(path)):
                found.append((path.stat().st_mtime, *result))
        except (OSError, ValueError, TypeError, KeyError):
            broken.append(path)
    return {model: cells for _, model, cells in sorted(found)}, sorted(broken)


def read_result(path: Path) -> tuple[str, list[str]] | None:
    """The model of a result.json, and what the table shows of it; None of a finetuned run."""
    result = json.loads(path.read_text("utf-8"))
    if "kind" in result:
        return None
    loss, note = result["test_loss"], ""
    if loss is None:  # a text has no test split
        loss, note = result["val_loss"], " (val)"
    data = Path(result["data"]).name or result["data"]
    cells = [f"{result['parameters']:,}", f"{loss:.4f}{note}", data, str(path.parent)]
    return str(result["model"]), cells


def table(rows: list[list[str]]) -> list[str]:
    """The rows as lines, with every column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if column in NUMBERS else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def colored(when: str, stream: TextIO) -> bool:
    """Whether to write in colour: when asked, or to a terminal (see no-color.org)."""
    return when == "always" or when == "auto" and stream.isatty() and not os.getenv("NO_COLOR")


def make_parser() -> Parser:
    parser = Parser(prog="python -m makemore", description="The ladder of stages as a table.")
    parser.add_argument("--runs", type=Path, metavar="DIR",
                        help="where the run folders are (default runs)")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    text = "what changes between two stages, or two pieces of one family"
    command = commands.add_parser("diff", help=text, description=f"Show {text}.")
    families = "; ".join(", ".join(family) for family in diff.FAMILIES.values())
    command.add_argument("stages", nargs="*", metavar="NAME",
                         help=f"two of {', '.join(STAGES)}, gpt; or two pieces of one family: "
                         f"{families}. One: from the one before it. None: from each stage to the "
                         "next")
    command.add_argument("--backend", action="store_true",
                         help="a stage in NumPy beside the same in PyTorch: bigram or mlp")
    command.add_argument("--context", type=int, default=3, metavar="N",
                         help="unchanged lines to show around a change (default 3)")
    command.add_argument("--color", choices=("auto", "always", "never"), default="auto",
                         help="auto: on a terminal, unless NO_COLOR is set (default auto)")
    text = "train the NumPy MLP once for each variant of one choice, and look inside"
    command = commands.add_parser("compare", help=text, description=f"{text.capitalize()}.")
    command.add_argument("--vary", required=True, metavar="CHOICE",
                         help=f"one of {', '.join(compare.VARIANTS)}")
    text = "names, usnames, or a file with an item a line (default names)"
    add(command, "data", text, str, metavar="DATA")
    add(command, "budget", f"lines that each run learns from (default {compare.BUDGET:,})")
    add(command, "seed", "of first weights and order of the data (default 0)")
    add(command, "out", "the folder (default runs/compare-CHOICE, numbered if there is one)", Path)
    command.set_defaults(data="names", budget=compare.BUDGET, seed=0)
    return parser


def main() -> None:
    """The command line."""
    args = make_parser().parse_args()
    # A terminal that cannot show a character gets its escape, never a traceback.
    sys.stdout.reconfigure(errors="backslashreplace")
    if args.command == "compare":
        return compare.main(args.vary, args.data, args.budget, args.seed, args.out)
    if args.command == "diff":
        color = colored(args.color, sys.stdout)
        if args.backend:
            return print_backends(args.stages, color)
        return print_diffs(args.stages, args.context, color)
    if args.runs and not args.runs.is_dir():
        raise ValueError(f"there is no folder {args.runs}.")
    # whoever reads the table from a pipe gets a line a stage, however long
    width = shutil.get_terminal_size((1000, 24)).columns
    print(ladder(args.runs or Path("runs"), width))


def print_diffs(names: list[str], context: int, color: bool) -> None:
    """One diff, or one after the other. ValueError: no such name, or nothing to compare."""
    known = [name for family in diff.families() for name in family]
    for name in names:
        if name not in known:
            raise ValueError(f"there is no stage {name}.{nearest(name, known)} "
                             f"The stages are {', '.join(STAGES)}, gpt; --help names the pieces.")
    if context < 0:
        raise ValueError(f"--context must be at least 0, not {context}.")
    for number, (before, after) in enumerate(diff.pairs(names)):
        if number:
            print()
        for line in diff.compare(before, after, context, color):
            print(line)


def print_backends(stages: list[str], color: bool) -> None:
    """A stage in NumPy beside the same in PyTorch. ValueError: none, or one without a version."""
    if len(stages) != 1:
        raise ValueError("--backend compares the two versions of one stage; name bigram or mlp.")
    stage_class(stages[0], "numpy")
    width = shutil.get_terminal_size((200, 24)).columns
    for line in diff.beside(stages[0], width, color):
        print(line)


if __name__ == "__main__":
    run(main)
