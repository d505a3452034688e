"""Fill in what the articles show of code and results: python -m book.marks

What lies between marks, which are comments of Markdown, is made here, in every article of FOLDERS.
On lines of their own, each ended by a line <!-- end -->:

    <!-- code makemore/rnn.py Cell.forward -->    a class, function or constant; without a name: all
    <!-- diff rnn lstm -->                        what python -m makemore diff rnn lstm shows
    <!-- diff rnn lstm hunks 2-3 -->              some of its hunks; hunk 2 is one; context 0: only
                                                  the lines that change
    <!-- table ladder -->                         by the function of that name in tables.py
    <!-- samples rnn -->                          of the trained stage, in book/results/ladder.json;
                                                  of mlp-numpy in numpy.json beside it

Behind a code or diff mark, once or more: from "text" to "text", the lines from the next that holds
the one to the next that holds the other, which may be the same. Between such parts stands "...".
In a sentence or a cell of a table (not first in a line, where Markdown would take all of it for
HTML, and not inside of an equation):

    <!-- value book/results/ladder.json stages.rnn.test_loss .4f -->1.9442<!-- end -->

A file, the way to the number in it, and Python's format. The way is made of names; in a list, of
places from 0, or better, as places change, of what the row must hold: rows.stage=rnn&data=tales
(in quotation marks where there are spaces). Behind the way may stand " / " or " - " and another way
in that file, or a number. Marks inside of fenced code and of `code` are text like any other.

Who changes code that is shown, or makes results anew (python -m book.results), runs this too.
"""

import ast
import inspect
import json
import re
import shlex
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import sample
from book import clone
from data import cli, runs
from data.cli import nearest
from makemore import diff

ROOT = Path(__file__).parents[1]
FOLDERS = (".", "makemore", "makemore/without_torch", "nanogpt", "finetune", "kernels", "data",
           "benchmarks", "book")
LADDER, IN_NUMPY = "book/results/ladder.json", "book/results/numpy.json"
LANGUAGES = {".py": "python", ".json": "json", ".toml": "toml", ".sh": "sh", "": "make"}
FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)$")
SPAN = re.compile(r"(?P<ticks>`+)(?!`).*?(?<!`)(?P=ticks)(?!`)|<!--(?P<comment>.*?)-->")
BEGINNING = re.compile(r"(\s|[-*+>]|\d+[.)])*$")  # of a line: indented, in a list or a quotation
END = "end"
WRONG = -1  # where a mark begins that cannot be filled, whose end is passed over


@dataclass
class Mark:
    """What is to be filled: its line, from 1; kind and words; the span of the text between."""

    line: int
    kind: str
    words: list[str]
    start: int
    end: int


Faults = list[tuple[int, str]]  # a line and a sentence


def find(text: str) -> tuple[list[Mark], Faults]:
    """The marks of an article, and what is wrong with others."""
    found: list[Mark] = []
    faults: Faults = []
    opened: Mark | None = None

    def leave_open() -> None:
        nonlocal opened
        if opened and opened.start != WRONG:
            faults.append((opened.line, f"the mark {opened.kind} has no <!-- end -->."))
        opened = None

    for number, here, line in lines_of(text):
        for part in SPAN.finditer(line):
            if part["comment"] is None:
                continue
            alone = line.strip() == part[0]
            start, stop = here + part.start(), here + part.end()
            kind, words, fault = read(part["comment"])
            if kind == END:
                if not opened:
                    fault = "an <!-- end --> ends no mark."
                elif opened.start != WRONG:
                    opened.end = start
                    if opened.kind == "value" or alone:
                        found.append(opened)
                    else:
                        fault = f"the end of a mark {opened.kind} needs a line of its own."
                opened = None
            else:
                leave_open()
                if not fault and kind != "value" and line.rstrip() != part[0]:
                    fault = f"a mark {kind} needs a line of its own, not indented."
                elif kind == "value" and BEGINNING.match(line[:part.start()]):
                    fault = ("a mark value must not begin a line: Markdown would take the line for "
                             "HTML.")
                # the end of a line belongs to what is filled in, spaces before it do not
                start = stop if kind == "value" else here + len(line.rstrip("\r\n"))
                opened = Mark(number, kind, words, WRONG if fault else start, start)
            if fault:
                faults.append((number, fault))
        if opened and opened.kind == "value" and opened.start != WRONG:
            faults.append((number, "a mark value has no <!-- end --> in its line."))
            opened.start = WRONG
    leave_open()
    return found, faults


def lines_of(text: str) -> Iterator[tuple[int, int, str]]:
    """Number, place and text of the lines that are not in fenced code."""
    fence, place = "", 0
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        edge = FENCE.match(line)
        if fence:
            if edge and edge[1].startswith(fence) and not edge[2].strip():
                fence = ""
        elif edge and not (edge[1][0] == "`" and "`" in edge[2]):
            fence = edge[1]
        else:
            yield number, place, line
        place += len(line)


def read(comment: str) -> tuple[str, list[str], str]:
    """The kind and the words of a mark, or what is wrong with it."""
    try:
        kind, *words = shlex.split(comment) or [""]
    except ValueError:
        return "", [], f"a quotation mark is open in <!--{comment}-->."
    if kind not in (*KINDS, END):
        return kind, words, (f"there is no mark {kind!r}.{nearest(kind, KINDS)} "
                             f"The marks are {', '.join(KINDS)}.")
    return kind, words, ""


def fill(text: str) -> tuple[str, list[Mark], Faults]:
    """The article with all marks filled, those that were stale, and what is wrong with others.

    A mark with a fault keeps what it held.
    """
    found, faults = find(text)
    stale, done, parts = [], 0, []
    for mark in found:
        held = text[mark.start:mark.end]
        try:
            content = make(mark)
        except ValueError as error:
            faults.append((mark.line, str(error)))
            continue
        if content != held:
            stale.append(mark)
        parts += [text[done:mark.start], content]
        done = mark.end
    return "".join([*parts, text[done:]]), stale, sorted(faults)


def make(mark: Mark) -> str:
    """What is to stand in a mark. ValueError: what is wrong with the mark."""
    function = KINDS[mark.kind]
    try:
        inspect.signature(function).bind(*mark.words)
    except TypeError as error:
        raise ValueError(f"in the mark {mark.kind}: {error}.") from None
    content = function(*mark.words)
    return content if mark.kind == "value" else f"\n{content}\n"


def fenced(lines: list[str], language: str) -> str:
    """A fenced block, whose fence is longer than any in it."""
    longest = max((len(m[1]) for m in map(re.compile(r"\s*(`{3,})").match, lines) if m), default=2)
    fence = "`" * (longest + 1)
    return "\n".join([fence + language, *lines, fence])


def source(file: str) -> str:
    """The text of a file of the project. ValueError: there is none."""
    path = ROOT / file
    if not path.is_file():
        hint = "; python -m book.results makes it" if file.startswith("book/results/") else ""
        raise ValueError(f"there is no file {file}{hint}.")
    return path.read_text("utf-8")


def code(file: str, *words: str) -> str:
    """A definition in a file, or all of it, or the parts of it that are asked for."""
    lines = source(file).splitlines()
    if words and words[0] not in ("from", "to"):
        if not file.endswith(".py"):
            raise ValueError(f"{file} is no Python, where {words[0]} could be defined.")
        node: ast.AST = ast.parse("\n".join(lines))
        name, *words = words
        for part in name.split("."):
            node = definition(node, part)
            if node is None:
                raise ValueError(f"there is no {name} in {file}.")
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
        lines = lines[first - 1:node.end_lineno]
    lines = textwrap.dedent("\n".join(excerpt(lines, words, file))).splitlines()
    return fenced(lines, LANGUAGES.get(Path(file).suffix, ""))


def definition(inside: ast.AST, name: str) -> ast.AST | None:
    """The class, function or assignment of that name, the outermost first."""
    for node in ast.walk(inside):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return node
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        if isinstance(node, ast.Assign | ast.AnnAssign):
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                return node
    return None


def excerpt(lines: list[str], words: list[str], what: str) -> list[str]:
    """The lines that `from "text" to "text"` ask for, once or more; without such words all."""
    words, shown, place = list(words), [], 0
    while words:
        if words[0] != "from" or len(words) < 4 or words[2] != "to":
            raise ValueError(f'write: from "text" to "text", not {" ".join(words)}.')
        _, start, _, stop, *words = words
        first = holding(start, lines, place, what)
        place = holding(stop, lines, first, what) + 1
        if shown:
            shown.append(re.match(" *", lines[first])[0] + "...")
        shown += lines[first:place]
    return shown or lines


def holding(text: str, lines: list[str], place: int, what: str) -> int:
    """The place of the next line that holds the text."""
    for number in range(place, len(lines)):
        if text in lines[number]:
            return number
    after = " after what is shown before" if place else ""
    raise ValueError(f"no line of {what} holds {text!r}{after}.")


def difference(before: str, after: str, *words: str) -> str:
    """The diff of two stages, or pieces of one family: all, or hunks and lines of it."""
    known = [name for family in diff.families() for name in family]
    for name in (before, after):
        if name not in known:
            raise ValueError(f"there is no stage {name}.{nearest(name, known)}")
    words, context = list(words), 3
    if words[:1] == ["context"]:
        context, words = number_of(words[1:2]), words[2:]
    diff.pairs([before, after])  # or says that they cannot be compared
    lines = list(diff.compare(before, after, context))
    if words and words[0] in ("hunk", "hunks"):
        begins = [n for n, line in enumerate(lines) if line.startswith("@@ ")] + [len(lines) - 1]
        first, last = hunks(words[1:2], len(begins) - 1)
        lines, words = lines[begins[first - 1]:begins[last]], words[2:]
    return fenced(excerpt(lines, words, f"the diff of {before} and {after}"), "diff")


def number_of(words: list[str]) -> int:
    if not words or not words[0].isdecimal():
        raise ValueError(f"context needs a number, not {' '.join(words) or 'nothing'}.")
    return int(words[0])


def hunks(words: list[str], count: int) -> tuple[int, int]:
    """The first and the last hunk of "2" or "2-3", which must be among 1 to count."""
    asked = re.fullmatch(r"(\d+)(?:-(\d+))?", words[0] if words else "")
    first, last = (int(asked[1]), int(asked[2] or asked[1])) if asked else (0, 0)
    if not 1 <= first <= last <= count:
        raise ValueError(f"there are hunks 1 to {count}, not {' '.join(words) or 'none'}.")
    return first, last


def table(name: str) -> str:
    """What the function of that name in tables.py makes of the results."""
    from book import tables  # only here: they need the benchmarks, which a clone alone has

    if name not in tables.TABLES:
        raise ValueError(f"there is no table {name}.{nearest(name, tables.TABLES)} "
                         f"The tables are {', '.join(tables.TABLES)}.")
    try:
        return tables.TABLES[name]()
    except FileNotFoundError as error:
        raise ValueError(f"the table {name} needs {error.filename}, which is not there.") from None


def samples(stage: str) -> str:
    """What the trained stage writes, and which of it stands in the training set."""
    here = found(f"stages.{stage}", IN_NUMPY if stage.endswith("-numpy") else LADDER)
    known = [sample.KNOWN if text in here["known_samples"] else "" for text in here["samples"]]
    lines = "\n".join(map("".join, zip(here["samples"], known, strict=True)))
    return fenced(lines.splitlines(), "text")


def value(file: str, way: str, *words: str) -> str:
    """A number of a results file, or the ratio of two, in a format of Python's."""
    number = found(way, file)
    if len(words) > 1 and words[0] in ("/", "-"):
        other = float(words[1]) if words[1][0].isdigit() else found(words[1], file)
        if not all(isinstance(x, int | float) for x in (number, other)) or other == 0:
            raise ValueError(f"{way} {words[0]} {words[1]} needs two numbers, the second not 0.")
        number = number / other if words[0] == "/" else number - other
        words = words[2:]
    if not isinstance(number, int | float | str):
        raise ValueError(f"{way} in {file} is neither a number nor a text.")
    if len(words) > 1:
        raise ValueError(f"a value has one format, not {' '.join(words)}.")
    try:
        return format(number, *words)
    except (ValueError, TypeError):
        raise ValueError(f"{number!r} cannot be written in the format {words[0]!r}.") from None


def found(way: str, file: str):
    """What stands at "stages.rnn.test_loss" or "rows.stage=rnn&data=tales.val_loss" of a file."""
    here = results(file)
    for part in way.split("."):
        try:
            here = row(here, part) if isinstance(here, list) else here[part]
        except (KeyError, ValueError, IndexError, TypeError):
            known = list(here) if isinstance(here, dict) else []
            only = "there is no one row" if "=" in part else "there is no"
            raise ValueError(f"{file} has no {way}: {only} {part}.{nearest(part, known)}") from None
    return here


def row(rows: list, which: str):
    """The row at a place from 0, or the only one that holds all of "stage=rnn&data=tales"."""
    if "=" not in which:
        return rows[int(which)]
    wanted = dict(pair.split("=") for pair in which.split("&"))
    (only,) = (r for r in rows if all(str(r.get(name)) == text for name, text in wanted.items()))
    return only


def results(file: str):
    """A JSON file of the project."""
    text = source(file)
    return parsed(text, file)


@lru_cache
def parsed(text: str, file: str):
    try:
        return json.loads(text)
    except ValueError:
        raise ValueError(f"{file} is no whole JSON file.") from None


KINDS: dict[str, Callable[..., str]] = {
    "code": code, "diff": difference, "table": table, "samples": samples, "value": value,
}


def articles() -> list[Path]:
    """Every Markdown file of the project."""
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.md"))]


def main() -> int:
    title = __doc__.split("\n")[0]
    parser = cli.Parser(prog="python -m book.marks", description=title)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE",
                        help="articles (default: all of the project)")
    parser.add_argument("--check", action="store_true",
                        help="change nothing; exit code 1 where something is stale")
    args = parser.parse_args()
    clone.check()
    wrong = stale = 0
    for path in args.files or articles():
        before = path.read_bytes().decode("utf-8")
        after, old, faults = fill(before)
        name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
        for line, fault in faults:
            print(f"error: {name}:{line}: {fault}", file=sys.stderr)
        for mark in old:
            done = "is stale" if args.check else "filled"
            print(f"{name}:{mark.line}: {mark.kind} {' '.join(mark.words)}: {done}")
        if old and not args.check:
            runs.write(path, after)
        wrong, stale = wrong + len(faults), stale + len(old)
    if stale and args.check:
        print("Fill them: python -m book.marks")
    return 2 if wrong else int(args.check and stale > 0)


if __name__ == "__main__":
    cli.run(main)
