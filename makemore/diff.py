"""Stages as text: what the file of a stage says of itself, and what changes to another's.

And the pieces of without_torch/ likewise: a class or function each, in families.
"""

import ast
import difflib
import inspect
import io
import re
import tokenize
from collections.abc import Iterator
from itertools import pairwise, zip_longest
from pathlib import Path

from . import STAGES, build
from .without_torch import activations, initialisation, losses, norms, optimizers, schedules

ROOT = Path(__file__).parents[1]
TOKENS, BLOCK_SIZE = 30, 16  # what parameters are counted at: the embedded names
BLANK = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
    tokenize.ENDMARKER,
}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)
FAMILIES = {  # of pieces: the file in without_torch, and what it defines, in order
    "activations": activations.ACTIVATIONS,
    "losses": losses.LOSSES,
    "norms": norms.NORMS | norms.PENALTIES,
    "initialisation": initialisation.INITS,
    "optimizers": optimizers.OPTIMIZERS,
    "schedules": schedules.SCHEDULES,
}
RED, GREEN, CYAN, BOLD = 31, 32, 36, 1  # terminal colours


def source(name: str, backend: str = "torch") -> str:
    """The text of a stage's file, or of the definition of a piece."""
    for family in FAMILIES.values():
        if name in family:
            return inspect.getsource(family[name])
    folder = "nanogpt" if name == "gpt" else "makemore"
    if backend == "numpy":
        folder = "makemore/without_torch"
    return (ROOT / folder / f"{name}.py").read_text("utf-8")


def idea(stage: str) -> str:
    """What position t knows in this stage, from the first line of its file."""
    first = ast.get_docstring(ast.parse(source(stage))).split("\n")[0]
    return first.partition("position t knows ")[2].rstrip(".")


def label(name: str) -> str:
    """The file of a stage or a piece, and behind a tab, where patch expects a date, its idea."""
    for file, family in FAMILIES.items():
        if name in family:
            said = " ".join(inspect.getdoc(family[name]).split())
            return f"makemore/without_torch/{file}.py\t{name}: {re.split('[.:] |[.]$', said)[0]}"
    folder = "nanogpt" if name == "gpt" else "makemore"
    return f"{folder}/{name}.py\tposition t knows {idea(name)}"


def families() -> list[list[str]]:
    """The names that may be compared with each other, in order: the stages first."""
    return [[*STAGES, "gpt"], *map(list, FAMILIES.values())]


def parameters(stage: str) -> int:
    """How many numbers the stage learns, at its default sizes."""
    return sum(p.numel() for p in build(stage, TOKENS, BLOCK_SIZE).parameters())


def code_lines(text: str) -> int:
    """How many lines of Python are neither blank, comment nor docstring."""
    return len(code_of(text))


def code_of(text: str) -> list[str]:
    """The lines of Python that are neither blank, comment nor docstring."""
    counted = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in BLANK:
            counted.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node):
            docstring = node.body[0]
            counted.difference_update(range(docstring.lineno, docstring.end_lineno + 1))
    lines = text.splitlines()
    return [lines[number - 1] for number in sorted(counted)]


def pairs(chosen: list[str]) -> list[tuple[str, str]]:
    """What to compare: all neighbours in makemore/, one stage with the one before it, or two."""
    if not chosen:
        return list(pairwise(STAGES))
    if len(chosen) > 2:
        raise ValueError(f"diff compares two stages, not {len(chosen)}.")
    family = next(family for family in families() if chosen[0] in family)
    if len(chosen) == 1:
        if chosen[0] == family[0]:
            raise ValueError(f"{family[0]} is the first stage, so there is none before it."
                             if family[0] in STAGES else f"{family[0]} is the first of its kind.")
        return [(family[family.index(chosen[0]) - 1], chosen[0])]
    before, after = chosen
    if before == after:
        raise ValueError(f"{before} and {after} are one stage, so nothing changes.")
    if after not in family:
        raise ValueError(f"{before} and {after} are of different kinds; {before} can be compared "
                         f"with {', '.join(name for name in family if name != before)}.")
    return [(before, after)]


def compare(before: str, after: str, context: int = 3, color: bool = False) -> Iterator[str]:
    """A unified diff between two stages or pieces, with their ideas and their sizes."""
    texts = source(before), source(after)
    a, b = texts[0].splitlines(), texts[1].splitlines()
    yield paint(f"--- {label(before)}", BOLD, color)
    yield paint(f"+++ {label(after)}", BOLD, color)
    yield from hunks(a, b, context, color)
    added, removed = counts(a, b)
    code = [code_lines(text) for text in texts]
    summary = (
        f"{before} -> {after}: {added} lines added, {removed} removed; "
        f"{code[0]} -> {code[1]} lines of code"
    )
    if before in STAGES and after in STAGES:
        size = [parameters(stage) for stage in (before, after)]
        summary += f"; {size[0]:,} -> {size[1]:,} parameters ({size[1] - size[0]:+,})"
    yield paint(summary, BOLD, color)


def beside(stage: str, width: int, color: bool = False) -> Iterator[str]:
    """The NumPy version of a stage on the left and the PyTorch version on the right.

    width: of both together, in characters; longer lines go on below. | marks lines that differ,
    < and > those that only one side has.
    """
    texts = [source(stage, backend).splitlines() for backend in ("numpy", "torch")]
    room = max(20, (width - 3) // 2)
    left, right = ([part for line in text for part in wrapped(line, room)] for text in texts)
    files = f"makemore/without_torch/{stage}.py", f"makemore/{stage}.py"
    yield paint(f"{files[0]:<{room}}   {files[1]}", BOLD, color)
    for tag, a1, a2, b1, b2 in matcher(left, right).get_opcodes():
        for a, b in zip_longest(left[a1:a2], right[b1:b2]):
            sign = " " if tag == "equal" else "<" if b is None else ">" if a is None else "|"
            a, b = f"{a or '':<{room}}", b or ""
            if tag != "equal":
                a, b = paint(a, RED, color), paint(b, GREEN, color)
            yield f"{a} {sign} {b}".rstrip()
    code = [code_lines("\n".join(text)) for text in texts]
    yield paint(f"{stage}: {code[0]} lines of code in NumPy, {code[1]} in PyTorch", BOLD, color)


def wrapped(line: str, room: int) -> list[str]:
    """A line in parts of at most `room` characters, an empty one in one part."""
    return [line[i:i + room] for i in range(0, len(line), room)] or [""]


def counts(a: list[str], b: list[str]) -> tuple[int, int]:
    """How many lines of b are added to a, and how many of a removed."""
    changes = [code for code in matcher(a, b).get_opcodes() if code[0] != "equal"]
    added = sum(b2 - b1 for _, _, _, b1, b2 in changes)
    removed = sum(a2 - a1 for _, a1, a2, _, _ in changes)
    return added, removed


def hunks(a: list[str], b: list[str], context: int, color: bool) -> Iterator[str]:
    """What changes from a to b, as in diff -u, with so many lines around it that do not."""
    for group in matcher(a, b).get_grouped_opcodes(context):
        (_, a1, _, b1, _), (_, _, a2, _, b2) = group[0], group[-1]
        yield paint(f"@@ -{span(a1, a2)} +{span(b1, b2)} @@", CYAN, color)
        for tag, a1, a2, b1, b2 in group:
            if tag == "equal":
                yield from (" " + line for line in a[a1:a2])
            else:
                yield from changed("-", a[a1:a2], b[b1:b2], RED, color)
                yield from changed("+", b[b1:b2], a[a1:a2], GREEN, color)


def changed(sign: str, lines: list[str], others: list[str], hue: int, color: bool) -> Iterator[str]:
    """Removed or added lines; others are those on the other side."""
    for line in lines:
        yield paint(sign + mark(line, others), hue, True) if color else sign + line


def mark(line: str, others: list[str]) -> str:
    """The line, with the words in reverse video that the most similar of the others lacks."""
    parts = words(line, others)
    return "".join(f"\033[7m{part}\033[27m" if lacking else part for part, lacking in parts)


def words(line: str, others: list[str]) -> list[tuple[str, bool]]:
    """The line in parts, and of each whether the most similar of the others lacks it."""
    similar = difflib.get_close_matches(line, others, n=1, cutoff=0.6)
    if not similar:
        return [(line, False)]  # all of it is new
    old, new = (re.findall(r"\w+|\s+|[^\w\s]", text) for text in (similar[0], line))
    codes = matcher(old, new).get_opcodes()
    parts = [("".join(new[start:end]), tag != "equal") for tag, _, _, start, end in codes]
    return [(part, lacking) for part, lacking in parts if part]


def matcher(a: list[str], b: list[str]) -> difflib.SequenceMatcher:
    return difflib.SequenceMatcher(None, a, b, autojunk=False)


def span(start: int, end: int) -> str:
    """Lines start to end, counted from 0, as the head of a hunk names them."""
    if end - start == 1:
        return str(start + 1)
    return f"{start + 1 if end > start else start},{end - start}"


def paint(text: str, hue: int, color: bool) -> str:
    return f"\033[{hue}m{text}\033[m" if color else text
