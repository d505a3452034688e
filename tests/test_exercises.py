"""The answers to the articles' exercises: their code runs, and prints what stands beside it."""

import contextlib
import io
import re

import pytest

from book.marks import ROOT, articles

ANSWER = re.compile(r"^<details>.*?^</details>", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
SAID = re.compile(r"(?:^|print\(.*\)  )# (.+)$")  # behind a print, or on a line of its own below it


def answers():
    """The blocks of Python in all answers, each with its article and line."""
    found = []
    for path in articles():
        text = path.read_text("utf-8")
        for answer in ANSWER.finditer(text):
            for block in BLOCK.finditer(answer[0]):
                line = text.count("\n", 0, answer.start() + block.start()) + 1
                found.append(pytest.param(block[1], id=f"{path.relative_to(ROOT)}:{line}"))
    return found


@pytest.mark.parametrize("block", answers())
def test_answer_prints_what_it_says(block):
    expected = [found[1] for line in block.splitlines() if (found := SAID.search(line))]
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(block, "answer", "exec"), {"__name__": "answer"})
    assert output.getvalue().splitlines() == expected
