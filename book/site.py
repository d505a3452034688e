"""The book as a folder of pages that need no network: python -m book.site

Opens in a browser from the disk (index.html). The pages lie as the files of the repository do:
makemore/rnn.md becomes makemore/rnn.html, and a file of code that an article links to
makemore/rnn.py.html, so that links need little change.
"""

import argparse
import json
import posixpath
import re
import shutil
import sys
from collections import Counter
from itertools import permutations
from pathlib import Path
from urllib.parse import quote, unquote

from book import clone
from data import cli
from makemore import diff

try:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    from book import sides
    from book.markup import Rendered, lexed, render, spans
except ImportError as error:
    if __name__ != "__main__":
        raise
    cli.run(clone.missing(error))

ROOT = Path(__file__).parents[1]
OUT = ROOT / "book" / "site"
RESULTS = ROOT / "book" / "results" / "ladder.json"
TEMPLATES = Path(__file__).parent / "templates"
STATIC = ("book.css", "book.js", "plot.js")
CHAPTERS = {  # those that exist, in the order of reading
    "In use": ["book/guide.md", "book/measured.md", "finetune/reached.md", "benchmarks/SPEED.md"],
    "The ladder": [*(f"makemore/{stage}.md" for stage in diff.STAGES), "nanogpt/gpt.md"],
    "Beneath and beyond": [
        "makemore/without_torch/without_torch.md", "kernels/attention.md", "finetune/finetune.md",
    ],
    "What all rungs share": [
        f"book/{name}.md" for name in ("tokens", "loss", "optimizers", "initialisation", "sampling")
    ],
}
PAGES = {"README.md": "about.html"}  # that do not lie where their files do
SIGN = "diff/index.html"  # what a folder is known by that holds a book
PICTURES = (".svg", ".png", ".jpg", ".gif")
LISTED = (".md", ".py", ".json", ".tsv", ".jsonl", ".html", ".css", ".js", *PICTURES)
LONGEST = 100_000  # characters of a file that its page shows
ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:|//", re.IGNORECASE)  # an address that is not ours


class Book:
    """What is being built: pages written, files that a page asked for, links that lead nowhere."""

    def __init__(self, out: Path, results: Path):
        self.out = out
        self.results = json.loads(results.read_text("utf-8")) if results.is_file() else None
        self.wanted: dict[str, None] = {}  # files and folders that were linked to, in order
        self.faults: list[str] = []
        self.undrawn: list[str] = []  # pictures that make results has still to make
        self.articles: dict[str, Rendered] = {}
        templates = FileSystemLoader(TEMPLATES)
        self.env = Environment(
            loader=templates, autoescape=True, undefined=StrictUndefined,
            trim_blocks=True, lstrip_blocks=True,
        )
        self.env.globals |= dict(spoken=sides.spoken, pair=pair, steps=sides.steps)
        self.env.filters["code"] = code

    def link(self, href: str, file: str) -> str:
        """The address, on the page of a file, of what that file links to. Asks for its page.

        Empty for results that are not there yet.
        """
        if ELSEWHERE.match(href) or href.startswith("#"):
            return href
        path, _, anchor = href.partition("#")
        target = posixpath.normpath(posixpath.join(posixpath.dirname(file), unquote(path)))
        if target.startswith("book/results/") and not (ROOT / target).exists():
            self.undrawn.append(target)
            return ""
        fault = ""
        if target.split("/")[0] in ("..", ""):  # its page would lie outside of the book
            fault = "outside of the project"
        elif not (ROOT / target).exists():
            fault = "which does not exist"
        if fault:
            self.faults.append(f"{file} links to {href}, {fault}")
            return href
        self.wanted.setdefault(target)
        return relative(address(target), address(file)) + (f"#{anchor}" if anchor else "")

    def write(self, page: str, template: str, **values) -> None:
        """One page. Templates know their way by link_to(file) and go(page)."""
        html = self.env.get_template(template).render(
            page=page, go=lambda other: relative(other, page),
            link_to=lambda file: self.ask(file, page), chapters=self.chapters(), **values,
        )
        path = self.out / page
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(html, "utf-8")

    def ask(self, file: str, page: str) -> str:
        self.wanted.setdefault(file)
        return relative(address(file), page)

    def chapters(self) -> dict[str, list[tuple[str, str]]]:
        """The page and the title of every article, by part."""
        parts = {
            part: [(address(file), self.articles[file].title) for file in files
                   if file in self.articles]
            for part, files in CHAPTERS.items()
        }
        return {part: pages for part, pages in parts.items() if pages}

    def read(self, file: str, named: bool = False) -> Rendered:
        """An article. ValueError: it has an equation that cannot be read, or no title.

        named: where it has no title it gets the name of its file.
        """
        text = (ROOT / file).read_text("utf-8")
        try:
            article = render(text, lambda href: self.link(href, file))
            if not article.title and named:
                article = render(f"# {file}\n\n{text}", lambda href: self.link(href, file))
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
        if not article.title:
            raise ValueError(f"{file} has no title: a first line with one #.")
        return article


def address(file: str) -> str:
    """The page of a file or a folder of the repository; a picture is its own."""
    if file in PAGES:
        return PAGES[file]
    if file.endswith(PICTURES):
        return file
    if (ROOT / file).is_dir():
        return posixpath.normpath(f"{file}/index.html") if file != "." else "files.html"
    return file.removesuffix(".md") + ".html"


def relative(target: str, page: str) -> str:
    """The way from one page to another."""
    return quote(posixpath.relpath(target, posixpath.dirname(page) or "."))


def pair(before: str, after: str) -> str:
    """The page of two stages side by side."""
    return f"diff/{before}-to-{after}.html"


def code(text: str, file: str) -> list[Markup]:
    """The lines of a file, coloured."""
    return [Markup(spans(line)) for line in lexed(text.rstrip("\n"), file=file)]


def write_articles(book: Book) -> None:
    """The README and all chapters, each with the one before and the one after it."""
    files = [file for part in CHAPTERS.values() for file in part if (ROOT / file).is_file()]
    book.articles = {file: book.read(file) for file in files}
    order = [("index.html", "The ladder"),
             *((address(file), book.articles[file].title) for file in files)]
    for number, file in enumerate(files, 1):
        after = order[number + 1] if number + 1 < len(order) else None
        write_article(book, file, book.articles[file], order[number - 1], after)
    write_article(book, "README.md", book.read("README.md"), None, None)


def write_article(book: Book, file: str, article: Rendered, before, after) -> None:
    stage = Path(file).stem
    stages = diff.families()[0]
    where = stages.index(stage) if stage in stages else 0
    book.write(
        address(file), "article.html", title=article.title, article=article, file=file,
        previous=before, following=after, stage=stage if stage in stages else None,
        stage_file=sides.file(stage) if stage in stages else None,
        stage_before=stages[where - 1] if where else None,
    )


def write_diffs(book: Book) -> None:
    """A page for every two stages, and every two pieces of a kind, in both directions."""
    families = sides.families()
    book.write(SIGN, "pairs.html", title="Compare", kinds=sides.kinds())
    for family in families:
        steps = sides.steps(family)
        for before, after in permutations(family, 2):
            title = f"{sides.spoken(before)} → {sides.spoken(after)}"
            at = steps.index((before, after)) if (before, after) in steps else None
            book.write(
                pair(before, after), "diff.html", title=title, before=before, after=after,
                family=family, files=[sides.file(before), sides.file(after)],
                ideas=[sides.idea(before), sides.idea(after)],
                summary=sides.summary(before, after), table=sides.table(before, after),
                previous=steps[at - 1] if at else None,
                following=steps[at + 1] if at is not None and at + 1 < len(steps) else None,
            )


def write_front(book: Book) -> None:
    """The ladder, as a plot and as a table."""
    results = book.results or {"about": {}, "stages": {}}
    rows = [(stage, sides.idea(stage), address(article_of(stage)), results["stages"].get(stage))
            for stage in diff.families()[0]]
    common = Counter(row["data"] for *_, row in rows if row).most_common(1)
    data = common[0][0] if common else None
    plotted = [
        {"stage": stage, "page": page, "idea": idea}
        | {name: row[name] for name in ("parameters", "seconds", "test_loss", "samples", "curve")}
        for stage, idea, page, row in rows
        if row and row["data"] == data and row["test_loss"] is not None
    ]
    missing = [stage for stage, _, _, row in rows if not row]
    book.write("index.html", "front.html", title="rungs", rows=rows, plotted=plotted, data=data,
               missing=missing, about=results["about"], families=sides.families(),
               playable=(ROOT / "book/play.html").is_file())


def article_of(stage: str) -> str:
    """The article of a stage or, where there is none yet, its code."""
    article = sides.file(stage).removesuffix(".py") + ".md"
    return article if (ROOT / article).is_file() else sides.file(stage)


def write_wanted(book: Book) -> None:
    """The files and folders that pages link to, and those that their pages link to in turn."""
    done = {*book.articles, "README.md"}
    while left := [file for file in book.wanted if file not in done]:
        for file in left:
            done.add(file)
            path = ROOT / file
            if path.is_dir():
                book.write(address(file), "folder.html", title=file, file=file,
                           entries=entries(path))
            elif file.endswith(PICTURES) and path.is_file():
                (book.out / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, book.out / file)
            elif file.endswith(".md") and path.is_file():
                write_article(book, file, book.read(file, named=True), None, None)
            elif path.is_file():
                text = path.read_text("utf-8", errors="replace")
                book.write(address(file), "source.html", title=file, file=file,
                           text=text[:LONGEST], cut=len(text) > LONGEST)


def entries(folder: Path) -> list[tuple[str, str]]:
    """The files and folders in a folder, and what each says of itself."""
    found = []
    for path in sorted(folder.iterdir(), key=lambda path: (path.is_dir(), path.name)):
        file = path.relative_to(ROOT).as_posix()
        if path.is_dir():
            if path != OUT and not path.name.startswith((".", "_")) and entries(path):
                found.append((file, ""))
        elif path.suffix in LISTED and not path.name.startswith("."):
            found.append((file, said(path)))
    return found


def said(path: Path) -> str:
    """The title of an article, or the first paragraph of what a Python file says of itself."""
    pattern = {".py": r'"""(.+?)(?:"""|\n\n)', ".md": r"# (.+?)\n"}.get(path.suffix)
    found = re.match(pattern, path.read_text("utf-8"), re.DOTALL) if pattern else None
    return " ".join(found[1].split()) if found else ""


def prepare(out: Path) -> None:
    """An empty folder. ValueError: there is something else in it."""
    own, asked = TEMPLATES.resolve(), out.resolve()
    if own.is_relative_to(asked) or asked.is_relative_to(own):
        raise ValueError(f"{out} holds what the book is made of; choose another --out.")
    if out.is_dir() and any(out.iterdir()):
        if not all((out / name).is_file() for name in (STATIC[0], SIGN)):
            raise ValueError(f"{out} is not empty and holds no book; choose another --out.")
        shutil.rmtree(out)
    (out / SIGN).parent.mkdir(parents=True, exist_ok=True)
    (out / SIGN).touch()  # from the beginning, so that a book that was stopped is known for one
    for name in STATIC:
        shutil.copyfile(TEMPLATES / name, out / name)


def build(out: Path = OUT, results: Path = RESULTS) -> list[str]:
    """The whole book in that folder. What is amiss with its results is returned, in sentences.

    ValueError: an article that cannot be read, or links that lead nowhere.
    """
    prepare(out)
    book = Book(out, results)
    write_articles(book)
    write_front(book)
    write_diffs(book)
    write_wanted(book)
    if book.faults:
        raise ValueError("; ".join(dict.fromkeys(book.faults)) + ".")
    trained = book.results["stages"] if book.results else {}
    missing = [stage for stage in diff.families()[0] if stage not in trained]
    missing += dict.fromkeys(book.undrawn)
    return [f"no results yet: {name} (make results)" for name in missing]


def main() -> None:
    parser = cli.Parser(prog="python -m book.site", description="Build the book as a folder.")
    parser.add_argument("--out", type=Path, default=OUT, metavar="DIR",
                        help="the folder, which is emptied (default book/site)")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE",
                        help=argparse.SUPPRESS)
    args = parser.parse_args()
    clone.check()
    for note in build(args.out, args.results):
        print(f"note: {note}", file=sys.stderr)
    print(f"{args.out / 'index.html'}")


if __name__ == "__main__":
    cli.run(main)
