"""Two files side by side, as HTML: what changed coloured, what did not folded away."""

import re
from functools import cache
from itertools import pairwise, zip_longest

from markupsafe import Markup

from book.markup import Line, lexed, spans
from makemore import BACKENDS, diff

CONTEXT = 3  # unchanged lines that are shown around a change
FOLD = 5  # so many more are worth a fold
ALIKE = 0.5  # of the words of two lines: then they stand beside each other
NUMPY = "-numpy"  # behind the name of a stage in without_torch


def families() -> list[list[str]]:
    """The names that may be compared with each other: the stages, those in NumPy, the pieces."""
    stages, *pieces = diff.families()
    return [[*stages, *(stage + NUMPY for stage in BACKENDS["numpy"])], *pieces]


def kinds() -> dict[str, list[str]]:
    """What each family is called, and its names."""
    return dict(zip(["stages", *diff.FAMILIES], families(), strict=True))


def steps(family: list[str]) -> list[tuple[str, str]]:
    """Each to the next, and at the end what is in NumPy beside the same in PyTorch."""
    ladder = [name for name in family if not name.endswith(NUMPY)]
    return [*pairwise(ladder), *((name, name.removesuffix(NUMPY)) for name in family
                                 if name.endswith(NUMPY))]


def spoken(name: str) -> str:
    """mlp-numpy -> mlp (NumPy)"""
    return name.removesuffix(NUMPY) + " (NumPy)" if name.endswith(NUMPY) else name


@cache
def source(name: str) -> str:
    """The code of a stage or a piece."""
    stage = name.removesuffix(NUMPY)
    return diff.source(stage, "torch" if stage == name else "numpy")


def file(name: str) -> str:
    """Where that code is, from the root of the repository."""
    if name.endswith(NUMPY):
        return f"makemore/without_torch/{name.removesuffix(NUMPY)}.py"
    return diff.label(name).partition("\t")[0]


def idea(name: str) -> str:
    """What a stage or a piece says of itself."""
    return diff.label(name.removesuffix(NUMPY)).partition("\t")[2].removeprefix(f"{name}: ")


@cache
def coloured(name: str) -> list[Line]:
    return lexed(source(name), language="python")


@cache
def plain(name: str) -> list[str]:
    """The lines of the code as HTML."""
    return [spans(line) for line in coloured(name)]


@cache
def words(line: str, other: str) -> list[tuple[str, bool]]:
    return diff.words(line, [other])


def table(before: str, after: str) -> Markup:
    """Blocks of lines, the same or changed: those of `before` at the left."""
    a, b = source(before).splitlines(), source(after).splitlines()
    blocks = []
    for tag, a1, a2, b1, b2 in diff.matcher(a, b).get_opcodes():
        if tag == "equal":
            rows = list(zip(range(a1, a2), range(b1, b2)))
            blocks.append(unchanged(before, after, rows, len(a), len(b)))
        else:
            rows = aligned(a[a1:a2], b[b1:b2])
            rows = [(None if i is None else a1 + i, None if j is None else b1 + j) for i, j in rows]
            blocks.append(changed(before, after, rows, a, b))
    return Markup("\n".join(blocks))


def unchanged(before: str, after: str, rows: list[tuple[int, int]], end_a: int, end_b: int) -> str:
    """Lines that are the same, all but those next to a change folded away."""
    head = 0 if rows[0] == (0, 0) else CONTEXT
    tail = len(rows) - (0 if rows[-1] == (end_a - 1, end_b - 1) else CONTEXT)
    if tail - head < FOLD:
        return same(before, after, rows)
    folded = same(before, after, rows[head:tail])
    summary = f"<summary>{tail - head} unchanged lines</summary>"
    parts = [same(before, after, rows[:head]),
             f'<details class="fold">{summary}{folded}</details>',
             same(before, after, rows[tail:])]
    return "\n".join(part for part in parts if part)


def same(before: str, after: str, rows: list[tuple[int, int]]) -> str:
    """Lines on both sides. Who hears the page, or sees it narrow, is told them once."""
    left = [cell("span", i, plain(before)[i]) for i, _ in rows]
    right = [cell('span aria-hidden="true"', j, plain(after)[j]) for _, j in rows]
    return sides(left, right, "same")


def changed(before: str, after: str, rows: list[tuple], a: list[str], b: list[str]) -> str:
    """Removed lines at the left, added ones at the right."""
    left, right = [], []
    for i, j in rows:
        if i is None or j is None:
            left.append(cell("del", i, "" if i is None else plain(before)[i]))
            right.append(cell("ins", j, "" if j is None else plain(after)[j]))
        else:
            left.append(cell("del", i, spans(coloured(before)[i], words(a[i], b[j]))))
            right.append(cell("ins", j, spans(coloured(after)[j], words(b[j], a[i]))))
    return sides(left, right, "change")


def sides(left: list[str], right: list[str], kind: str) -> str:
    """Two columns: in the text the right one follows the left one."""
    if not left:
        return ""
    return f'<div class="{kind}" style="--rows:{len(left)}">{"".join(left + right)}</div>'


def cell(tag: str, number: int | None, html: str) -> str:
    """A line with its number, or the room of one."""
    if number is None:
        return '<span class="none"></span>'
    return f'<{tag} data-n="{number + 1}">{html or " "}</{tag.split()[0]}>'


def aligned(a: list[str], b: list[str]) -> list[tuple[int | None, int | None]]:
    """Rows of line numbers in a and b, in order: lines that are alike in one row, as many as can
    be; the others beside each other as they come."""
    bags = [[set(re.findall(r"\w+", line)) for line in lines] for lines in (a, b)]
    best = [[0.0] * (len(b) + 1) for _ in range(len(a) + 1)]  # best[i][j]: of a[i:] and b[j:]
    likeness = [[share(mine, others) for others in bags[1]] for mine in bags[0]]
    for i in reversed(range(len(a))):
        for j in reversed(range(len(b))):
            both = likeness[i][j] + best[i + 1][j + 1] if likeness[i][j] else 0.0
            best[i][j] = max(best[i + 1][j], best[i][j + 1], both)
    rows, left, right, i, j = [], [], [], 0, 0
    while i < len(a) and j < len(b):
        if likeness[i][j] and best[i][j] == likeness[i][j] + best[i + 1][j + 1]:
            rows += [*zip_longest(left, right), (i, j)]
            left, right, i, j = [], [], i + 1, j + 1
        elif best[i][j] == best[i + 1][j]:
            left.append(i)
            i += 1
        else:
            right.append(j)
            j += 1
    return [*rows, *zip_longest(left + [*range(i, len(a))], right + [*range(j, len(b))])]


def share(mine: set[str], others: set[str]) -> float:
    """How much of the words of two lines is in both, or 0 if that is little."""
    common = len(mine & others) / max(1, len(mine | others))
    return common if common >= ALIKE else 0.0


def summary(before: str, after: str) -> str:
    """How many lines come and go, and how much code and how many parameters there are."""
    texts = [source(name) for name in (before, after)]
    added, removed = diff.counts(*(text.splitlines() for text in texts))
    code = [code_lines(text) for text in texts]
    said = f"{added} lines added, {removed} removed; {code[0]} → {code[1]} lines of code"
    if before in BACKENDS["torch"] and after in BACKENDS["torch"]:
        sizes = [parameters(name) for name in (before, after)]
        said += f"; {sizes[0]:,} → {sizes[1]:,} parameters"
    return said


@cache
def code_lines(text: str) -> int:
    return diff.code_lines(text)


@cache
def parameters(stage: str) -> int:
    return diff.parameters(stage)
