"""python -m makemore: the ladder as a table; with diff: what changes between its stages."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import TextIO

from data.cli import Parser, nearest, run

from . import STAGES
from .diff import code_lines, compare, idea, pairs, parameters, source

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
    ]
    return "\n".join(lines)


def newest_results(root: Path) -> tuple[dict[str, list[str]], list[Path]]:
    """For each stage the parameters, loss, data and folder of its newest run with a result.json.

    Also the files that are no such result: a run of long ago should not spoil the table.
    """
    found, broken = [], []
    for path in root.glob("*/result.json"):
        try:
            found.append((path.stat().st_mtime, *read_result(path)))
        except (OSError, ValueError, TypeError, KeyError):
            broken.append(path)
    return {model: cells for _, model, cells in sorted(found)}, sorted(broken)


def read_result(path: Path) -> tuple[str, list[str]]:
    """The model of a result.json, and what the table shows of it."""
    result = json.loads(path.read_text("utf-8"))
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
    text = "what changes between two stages' files"
    diff = commands.add_parser("diff", help=text, description=f"Show {text}.")
    diff.add_argument("stages", nargs="*", metavar="STAGE",
                      help=f"two of {', '.join(STAGES)}; one: from the stage before it; "
                      "none: from each to the next")
    diff.add_argument("--context", type=int, default=3, metavar="N",
                      help="unchanged lines to show around a change (default 3)")
    diff.add_argument("--color", choices=("auto", "always", "never"), default="auto",
                      help="auto: on a terminal, unless NO_COLOR is set (default auto)")
    return parser


def main() -> None:
    """The command line."""
    args = make_parser().parse_args()
    # A terminal that cannot show a character gets its escape, never a traceback.
    sys.stdout.reconfigure(errors="backslashreplace")
    if args.command == "diff":
        return print_diffs(args.stages, args.context, colored(args.color, sys.stdout))
    if args.runs and not args.runs.is_dir():
        raise ValueError(f"there is no folder {args.runs}.")
    # whoever reads the table from a pipe gets a line a stage, however long
    width = shutil.get_terminal_size((1000, 24)).columns
    print(ladder(args.runs or Path("runs"), width))


def print_diffs(stages: list[str], context: int, color: bool) -> None:
    """One diff, or one after the other. ValueError: no such stage, or nothing to compare."""
    for stage in stages:
        if stage not in STAGES:
            raise ValueError(f"there is no stage {stage}.{nearest(stage, STAGES)} "
                             f"The stages are {', '.join(STAGES)}.")
    if context < 0:
        raise ValueError(f"--context must be at least 0, not {context}.")
    for number, (before, after) in enumerate(pairs(stages)):
        if number:
            print()
        for line in compare(before, after, context, color):
            print(line)


if __name__ == "__main__":
    run(main)
