"""What the articles let a reader run: every snippet runs, and prints what stands beside it."""

import contextlib
import io
import re
import runpy
from pathlib import Path

import pytest

from book.diagrams import DIAGRAMS, draw_all
from nanogpt import STAGES

ROOT = Path(__file__).parents[1]
FOLDERS = ("makemore", "makemore/without_torch", "nanogpt", "kernels", "finetune", "book")
ARTICLES = [str(path.relative_to(ROOT)) for folder in FOLDERS
            for path in sorted((ROOT / folder).glob("*.md"))]
MARKED = re.compile(r"<!-- (code|diff|table|samples) .*?-->.*?<!-- end -->", re.S)
SNIPPET = re.compile(r"```python\n(.*?)```", re.S)
PRINTED = re.compile(r"print\(.*\)  # (.*)")
WORDS = 1500


def snippets(article: str) -> list[str]:
    """The Python that stands in an article but between marks, where it is code of the project."""
    return SNIPPET.findall(MARKED.sub("", (ROOT / article).read_text("utf-8")))


@pytest.mark.parametrize("article", ARTICLES)
def test_every_snippet_runs_and_prints_what_is_said(article, tmp_path):
    for number, snippet in enumerate(snippets(article)):
        path = tmp_path / f"snippet_{number}.py"
        path.write_text(snippet, "utf-8")
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            runpy.run_path(str(path))
        assert said.getvalue().splitlines() == PRINTED.findall(snippet), snippet


@pytest.mark.parametrize("article", ARTICLES)
def test_no_article_is_too_long(article):
    text = (ROOT / article).read_text("utf-8")
    figures = r"<!-- table .*?<!-- end -->|<!--.*?-->|^```.*?^```"
    prose = re.sub(figures, "", text, flags=re.S | re.M)
    assert len(prose.split()) <= WORDS


@pytest.mark.parametrize("article", ARTICLES)
def test_every_answer_is_folded_away(article):
    text = (ROOT / article).read_text("utf-8")
    assert text.count("<details><summary>Answer</summary>\n\n") == text.count("</details>")


@pytest.mark.parametrize("stage", STAGES)
def test_the_article_of_a_stage_has_all_its_parts(stage):
    article = "nanogpt/gpt.md" if stage == "gpt" else f"makemore/{stage}.md"
    text = (ROOT / article).read_text("utf-8")
    parts = re.findall("^## (.*)", text, re.M)
    assert parts[:3] == ["The question", "The idea", "The code"]
    assert parts[-4:] == ["What it reaches", "Inside", "Where it fails", "Exercises"]
    assert "<!-- diff " in text or stage == "bigram"
    assert f"<!-- samples {stage} -->" in text and f"results/{stage}.svg)" in text
    assert text.count("<summary>Answer</summary>") == 3


def test_the_diagrams_are_small_and_always_the_same(tmp_path):
    draw_all(tmp_path)
    drawn = {path.stem: path.read_bytes() for path in tmp_path.glob("*.svg")}
    assert drawn.keys() == DIAGRAMS.keys()
    assert all(len(content) < 200_000 for content in drawn.values())
    DIAGRAMS["schedules"](tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_bytes() == drawn["schedules"]
