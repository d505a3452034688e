"""Stages as text: what the file of a stage says of itself, and what changes to another's."""

import ast
import difflib
import io
import re
import tokenize
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from . import STAGES, build

TOKENS, BLOCK_SIZE = 30, 16  # what parameters are counted at: the embedded names
BLANK = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
    tokenize.ENDMARKER,
}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)
RED, GREEN, CYAN, BOLD = 31, 32, 36, 1  # terminal colours


def source(stage: str) -> str:
    """The text of a stage's file."""
    return Path(__file__).with_name(f"{stage}.py").read_text("utf-8")


def idea(stage: str) -> str:
    """What position t knows in this stage, from the first line of its file."""
    first = ast.get_docstring(ast.parse(source(stage))).split("\n")[0]
    return first.partition("position t knows ")[2].rstrip(".")


def parameters(stage: str) -> int:
    """How many numbers the stage learns, at its default sizes."""
    return sum(p.numel() for p in build(stage, TOKENS, BLOCK_SIZE).parameters())


def code_lines(text: str) -> int:
    """The lines of Python that are neither blank, comment nor docstring."""
    counted = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in BLANK:
            counted.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node):
            docstring = node.body[0]
            counted.difference_update(range(docstring.lineno, docstring.end_lineno + 1))
    return len(counted)


def pairs(stages: list[str]) -> list[tuple[str, str]]:
    """What to compare: all neighbours, one stage with the one before it, or the two named."""
    names = list(STAGES)
    if not stages:
        return list(pairwise(names))
    if len(stages) > 2:
        raise ValueError(f"diff compares two stages, not {len(stages)}.")
    if len(stages) == 1:
        if stages[0] == names[0]:
            raise ValueError(f"{names[0]} is the first stage, so there is none before it.")
        return [(names[names.index(stages[0]) - 1], stages[0])]
    if stages[0] == stages[1]:
        raise ValueError(f"{stages[0]} and {stages[1]} are one stage, so nothing changes.")
    return [(stages[0], stages[1])]


def compare(before: str, after: str, context: int = 3, color: bool = False) -> Iterator[str]:
    """A unified diff between the files of two stages, with what they know and their sizes."""
    texts = source(before), source(after)
    a, b = texts[0].splitlines(), texts[1].splitlines()
    # behind a tab, where patch expects a date: so it reads past the idea
    yield paint(f"--- makemore/{before}.py\tposition t knows {idea(before)}", BOLD, color)
    yield paint(f"+++ makemore/{after}.py\tposition t knows {idea(after)}", BOLD, color)
    yield from hunks(a, b, context, color)
    added, removed = counts(a, b)
    code = [code_lines(text) for text in texts]
    size = [parameters(stage) for stage in (before, after)]
    summary = (
        f"{before} -> {after}: {added} lines added, {removed} removed; "
        f"{code[0]} -> {code[1]} lines of code; "
        f"{size[0]:,} -> {size[1]:,} parameters ({size[1] - size[0]:+,})"
    )
    yield paint(summary, BOLD, color)


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
    similar = difflib.get_close_matches(line, others, n=1, cutoff=0.6)
    if not similar:
        return line  # all of it is new
    old, new = (re.findall(r"\w+|\s+|[^\w\s]", text) for text in (similar[0], line))
    parts = []
    for tag, _, _, start, end in matcher(old, new).get_opcodes():
        part = "".join(new[start:end])
        parts.append(part if tag == "equal" or not part else f"\033[7m{part}\033[27m")
    return "".join(parts)


def matcher(a: list[str], b: list[str]) -> difflib.SequenceMatcher:
    return difflib.SequenceMatcher(None, a, b, autojunk=False)


def span(start: int, end: int) -> str:
    """Lines start to end, counted from 0, as the head of a hunk names them."""
    if end - start == 1:
        return str(start + 1)
    return f"{start + 1 if end > start else start},{end - start}"


def paint(text: str, hue: int, color: bool) -> str:
    return f"\033[{hue}m{text}\033[m" if color else text
