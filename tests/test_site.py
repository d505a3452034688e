"""The book: whole, without a network, and its pieces."""

import json
import re
import shutil
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest

pytest.importorskip("jinja2", reason="the book needs pip install -e '.[book]'")

from book import sides, site
from book.markup import lexed, render, spans
from makemore import diff

LOADING = {"src", "srcset", "data", "poster", "action", "formaction", "background", "xlink:href"}


class Parsed(HTMLParser):
    """What a page holds: anchors, links, what it loads, its text."""

    def __init__(self, html):
        super().__init__()
        self.anchors, self.links, self.loaded, self.text = [], [], [], []
        self.open = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name == "id":
                self.anchors.append(value)
            elif name == "href" and tag == "a":
                self.links.append(value)
            elif name in LOADING or name == "href":
                self.loaded.append(value)
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text.append(data)


@pytest.fixture(scope="module")
def pages(book):
    return {path: Parsed(path.read_text("utf-8")) for path in book.rglob("*.html")}


def html_of(markdown):
    return str(render(markdown, lambda href: href).body)


def removed(html, tag):
    """The lines of one side of a diff that have that tag, as they stand in the file."""
    found = re.findall(rf"<{tag} data-n=\"(\d+)\">(.*?)</{tag}>", html)
    return {int(number): "".join(Parsed(line).text) for number, line in found}


def test_every_link_and_anchor_leads_somewhere(book, pages):
    assert len(pages) > 250
    for path, page in pages.items():
        assert len(page.anchors) == len(set(page.anchors)), path
        for link in page.links + page.loaded:
            if re.match("https?:|mailto:|data:,$", link):
                continue
            address, _, anchor = link.partition("#")
            target = (path.parent / unquote(address)).resolve() if address else path
            assert target.is_file() and target.is_relative_to(book), f"{path}: {link}"
            if anchor:
                assert unquote(anchor) in pages[target].anchors, f"{path}: {link}"


def test_nothing_is_loaded_from_elsewhere(book, pages):
    for path, page in pages.items():
        assert all(address == "data:," or not re.match("[a-z]+:|//", address)
                   for address in page.loaded), path
    for path in [*book.glob("*.css"), *book.glob("*.js")]:
        text = path.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//\w|url\((?!#)|@import|fetch|XMLHttp", text), path


def test_every_page_says_what_it_is(pages):
    for path in pages:
        html = path.read_text("utf-8")
        assert html.startswith('<!doctype html>\n<html lang="en">'), path
        assert html.count("<h1") == 1 and html.count("<main") == 1, path
        assert re.search("<title>.+</title>", html) and "width=device-width" in html, path


def test_articles_are_in_order(book):
    files = [file for part in site.CHAPTERS.values() for file in part
             if (site.ROOT / file).is_file()]
    addresses = ["index.html", *map(site.address, files)]
    front = (book / "index.html").read_text("utf-8")
    for number, address in enumerate(addresses[1:], 1):
        html = (book / address).read_text("utf-8")
        assert f'href="{address}"' in front
        before = re.search('rel="prev" href="(.*?)"', html)[1]
        assert (book / address).parent.joinpath(before).resolve() == book / addresses[number - 1]
        after = re.search('rel="next" href="(.*?)"', html)
        assert bool(after) == (number + 1 < len(addresses))


def test_every_equation_became_mathml(book):
    article = (book / "kernels/attention.html").read_text("utf-8")
    text = "".join(Parsed(re.sub("<(math|pre|code).*?</\\1>", "", article, flags=re.DOTALL)).text)
    markdown = (site.ROOT / "kernels/attention.md").read_text("utf-8")
    assert article.count('<math display="block"') == markdown.count("$$") / 2 > 3
    assert "$" not in text and "\\" not in text


def test_the_front_page_shows_what_the_results_hold(book, ladder_results):
    html = (book / "index.html").read_text("utf-8")
    stages = json.loads(ladder_results.read_text("utf-8"))["stages"]
    inlined = re.search('id="ladder-data">(.*?)</script>', html, re.DOTALL)[1]
    plotted = {row["stage"]: row for row in json.loads(inlined)}
    assert list(plotted) == list(diff.STAGES)  # gpt is of other data
    for stage, row in plotted.items():
        assert all(row[name] == stages[stage][name] for name in ("test_loss", "samples", "curve"))
    pattern = r'<tr><th scope="row"><a href=".*?">(\w+)</a>(.*?)</tr>'
    rows = dict(re.findall(pattern, html, re.DOTALL))
    for stage, row in stages.items():
        assert f">{row['parameters']:,}<" in rows[stage]
        assert f">{row['test_loss']:.4f}<" in rows[stage]
        assert f"{stage}&lt;/script&gt;&lt;b&gt;&amp;0" in html
    assert "No results yet" not in html


def test_without_results_the_book_says_so(tmp_path, ladder_results, monkeypatch):
    monkeypatch.setattr(site, "write_diffs", lambda book: None)  # they take the most time
    monkeypatch.setattr(site, "write_wanted", lambda book: None)
    notes = site.build(tmp_path / "none", tmp_path / "missing.json")
    assert "no results yet: rnn (make results)" in notes
    html = (tmp_path / "none/index.html").read_text("utf-8")
    assert "No results yet of bigram, mlp" in html and "ladder-data" not in html
    some = json.loads(ladder_results.read_text("utf-8"))
    some["stages"] = {name: some["stages"][name] for name in ("bigram", "gpt")}
    (tmp_path / "some.json").write_text(json.dumps(some), "utf-8")
    notes = " ".join(site.build(tmp_path / "some", tmp_path / "some.json"))
    assert "yet: mlp" in notes and "yet: bigram" not in notes and "yet: gpt" not in notes
    assert "No results yet of mlp" in (tmp_path / "some/index.html").read_text("utf-8")


@pytest.mark.parametrize("before, after", [
    ("rnn", "lstm"), ("lstm", "rnn"), ("gpt", "bigram"), ("mlp-numpy", "mlp"), ("rmsprop", "adam"),
])
def test_a_diff_makes_one_file_of_the_other(book, before, after):
    html = (book / site.pair(before, after)).read_text("utf-8")
    a, b = (sides.source(name).splitlines() for name in (before, after))
    gone, come = removed(html, "del"), removed(html, "ins")
    for number, line in gone.items():
        assert line == (a[number - 1] or " ")
    for number, line in come.items():
        assert line == (b[number - 1] or " ")
    kept = [line for number, line in enumerate(a, 1) if number not in gone]
    assert kept == [line for number, line in enumerate(b, 1) if number not in come]
    assert (len(come), len(gone)) == diff.counts(a, b)
    shown = re.findall(r'<span data-n="(\d+)">', html.split("<div class=\"code sides\">")[1])
    assert sorted({*map(int, shown), *gone}) == list(range(1, len(a) + 1))


def test_every_two_of_a_family_have_a_page(book):
    families = sides.families()
    assert {"bigram-numpy", "mlp-numpy", "gpt", *diff.STAGES} == set(families[0])
    count = sum(len(family) * (len(family) - 1) for family in families)
    assert len(list(book.glob("diff/*-to-*.html"))) == count
    index = (book / site.SIGN).read_text("utf-8")
    assert re.findall("<h2>(.*?)</h2>", index) == ["Stages", *map(str.capitalize, diff.FAMILIES)]
    html = (book / "diff/rnn-to-lstm.html").read_text("utf-8")
    assert [*re.findall('<option value="(.*?)"', html)] == 2 * families[0]
    assert re.findall('<option value="(.*?)" selected', html) == ["rnn", "lstm"]


def test_lines_that_are_alike_stand_beside_each_other():
    a = ["x = 1", "self.wide = Linear(width, width)", "return x"]
    b = ["y = f(2)", "z = g(3)", "self.wide = Linear(width, 4 * width)", "return x"]
    assert sides.aligned(a, b) == [(0, 0), (None, 1), (1, 2), (2, 3)]
    assert sides.aligned([], ["a", "b"]) == [(None, 0), (None, 1)]
    assert sides.aligned(["a"], []) == [(0, None)]
    html = sides.changed("rnn", "lstm", [(0, 0)], *(
        sides.source(name).splitlines() for name in ("rnn", "lstm")))
    assert "<mark>" in html and html.index("<del") < html.index("<ins")


def test_folds_hide_what_is_far_from_changes():
    rows = [(n, n) for n in range(20)]
    middle = sides.unchanged("rnn", "rnn", [(n + 5, n + 5) for n, _ in rows], 40, 40)
    assert "14 unchanged lines" in middle
    assert "17 unchanged lines" in sides.unchanged("rnn", "rnn", rows, 40, 40)
    assert "<details" not in sides.unchanged("rnn", "rnn", rows[5:15], 40, 40)


def test_colours_change_no_character():
    text = 'def f(x):\n    """Two\n\n    lines <b>."""\n\n    return f"{x!r}" & 1  # é\n'
    lines = lexed(text, language="python")
    assert "\n".join("".join(part for _, part in line) for line in lines) == text
    html = [spans(line) for line in lines]
    assert html[0].startswith('<span class="k">def</span> <span class="nf">f</span>')
    assert "&lt;b&gt;" in html[3]
    last = lexed("-a\n+b", language="diff")[-1]
    assert spans(last) == '<span class="gi">+b</span>'
    whole = "".join(part for _, part in lines[0])
    assert spans(lines[0], [(whole[:5], False), ("(x", True), ("):", False)]).count("<mark>") == 2


def test_markdown_as_github_reads_it():
    found = render(
        "# The *title*\n\n## What's `x` — new?\n\n<!-- table ladder -->\n| a | b |\n| --- | --- |\n"
        "| $x_t$ | `<!-- kept -->` |\n<!-- end -->\n\n"
        "<!-- value a.json b .2f -->1.94<!-- end --> is *low*.\n\n"
        "```text\n<!-- kept too -->\n```\n\n"
        "<details><summary>Answer</summary>\n\nIt is **4**.\n\n</details>\n", str)
    html = str(found.body)
    assert found.title == "The title"
    assert found.headings == [(2, "whats-x--new", "What's x — new?")]
    assert "<table>" in html and "<math><" in html
    assert "<p>1.94 is <em>low</em>.</p>" in html
    assert "table ladder" not in html
    assert "&lt;!-- kept --&gt;" in html and "kept too" in html
    assert "<summary>Answer</summary>\n<p>It is <strong>4</strong>.</p>\n</details>" in html


def test_code_that_is_indented_scrolls_too():
    assert html_of("So:\n\n    a <b>\n").endswith(
        '<pre class="code scroll"><code>a &lt;b&gt;\n</code></pre>')


def test_a_picture_that_is_not_drawn_yet():
    def link(href):
        return "" if href.startswith("results") else href

    html = str(render("![rnn](results/rnn.svg) ![text](text.png)\n", link).body)
    assert "No picture yet" in html and html.count("<img") == 1 and 'alt="text"' in html


def test_dollars_that_are_no_equation():
    assert "<math" not in html_of("`$RUNGS_DATA/a` and `$HOME`, 5 $ or 6 $ a day")
    box = 'class="scroll equation"><math display="block">'
    assert html_of("$$\na = b\n$$\n").startswith(f"<div {box}")
    assert html_of("So\n$$a = b$$,").startswith(f"<p>So\n<span {box}")
    with pytest.raises(ValueError, match=r"the equation \\nothing x cannot be read"):
        html_of(r"So $\nothing x$.")


def test_links_lead_to_pages(tmp_path):
    book = site.Book(tmp_path, tmp_path / "none.json")
    at = "makemore/rnn.md"
    assert book.link("rnn.py#L3", at) == "rnn.py.html#L3"
    assert book.link("../README.md", at) == "../about.html"
    assert book.link("../kernels/attention.md#backward", at) == "../kernels/attention.html#backward"
    assert book.link("../kernels", at) == "../kernels/index.html"
    assert book.link("../benchmarks/results/text.png", at) == "../benchmarks/results/text.png"
    assert book.link("https://example.org/a.md", at) == "https://example.org/a.md"
    assert book.link("../book/results/no.svg", at) == ""
    assert not book.faults and book.undrawn == ["book/results/no.svg"]
    wanted = dict(book.wanted)
    book.link("no.py", at)
    assert book.faults == ["makemore/rnn.md links to no.py, which does not exist"]
    assert book.wanted == wanted


def test_a_table_without_a_title_gets_that_of_its_file(book):
    html = (book / "benchmarks/results/space-sm90.html").read_text("utf-8")
    assert re.search("<h1.*?>benchmarks/results/space-sm90.md", html) and "<table>" in html


def test_no_page_is_written_outside_of_the_book(tmp_path, monkeypatch, refusal):
    project, out = tmp_path / "a/project", tmp_path / "b/site"
    project.mkdir(parents=True)
    notes = tmp_path / "a/notes.md"
    notes.write_text("# Mine\n")
    links = ("../notes.md", "makemore/../../notes.md", "%2e%2e/notes.md", str(notes), "..")
    readme = "# A\n\n" + "\n".join(f"[x]({link})" for link in links)
    (project / "README.md").write_text(readme, "utf-8")
    monkeypatch.setattr(site, "ROOT", project)
    monkeypatch.setattr(site, "write_diffs", lambda book: None)
    monkeypatch.setattr(site, "write_front", lambda book: None)
    said = refusal(site.main, f"--out={out}")
    for link in links:
        assert f"README.md links to {link}, outside of the project" in said
    files = {path for path in (tmp_path / "a").rglob("*") if path.is_file()}
    assert files == {notes, project / "README.md"}


def test_a_folder_with_other_things_is_left_alone(tmp_path, refusal):
    (tmp_path / "thesis.txt").write_text("years of work")
    assert "holds no book" in refusal(site.main, f"--out={tmp_path}")
    (tmp_path / "book.css").write_text("of another book")
    assert "holds no book" in refusal(site.main, f"--out={tmp_path}")
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("out", ["", "below", "..", "../.."])
def test_what_the_book_is_made_of_is_left_alone(tmp_path, monkeypatch, refusal, out):
    templates = tmp_path / "project/book/templates"
    shutil.copytree(site.TEMPLATES, templates)
    monkeypatch.setattr(site, "TEMPLATES", templates)
    for folder in (templates / out, templates):  # even where it looks like a book
        (folder / "diff").mkdir(parents=True, exist_ok=True)
        (folder / "diff/index.html").touch()
        (folder / "book.css").touch()
    assert "what the book is made of" in refusal(site.main, f"--out={templates / out}")
    assert (templates / "base.html").is_file()


def test_a_book_is_made_anew_even_one_that_was_stopped(tmp_path):
    out = tmp_path / "site"
    site.prepare(out)
    (out / "old.html").touch()
    site.prepare(out)
    assert not (out / "old.html").exists() and (out / "book.css").is_file()
