"""Markdown and code as HTML: equations become MathML, code is coloured, links lead to pages.

The work is done by markdown-it, Pygments and math-core; here is what they are told.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

from markdown_it import MarkdownIt
from markupsafe import Markup, escape
from math_core import LatexError, LatexToMathML
from mdit_py_plugins.anchors import anchors_plugin
from mdit_py_plugins.dollarmath import dollarmath_plugin
from pygments.lexers import TextLexer, get_lexer_by_name, get_lexer_for_filename
from pygments.token import STANDARD_TYPES
from pygments.util import ClassNotFound

FENCE = re.compile(r" {0,3}(```+|~~~+)")
COMMENT = re.compile(r"(`+)(?!`).*?(?<!`)\1(?!`)|<!--.*?-->", re.DOTALL)  # or a span of code
ADDRESS = re.compile(r"""(\s)(href|src)=(["'])(.*?)\3""")  # in HTML within Markdown
UNDRAWN = '<span class="note">No picture yet: <code>make results</code> draws it.</span>'
Line = list[tuple[str, str]]  # parts of a line of code, each with its class in the style sheet


@dataclass
class Rendered:
    """A Markdown file as HTML. headings: level, anchor and text of those below the title."""

    title: str
    body: Markup
    headings: list[tuple[int, str, str]]


def render(text: str, link: Callable[[str], str]) -> Rendered:
    """Markdown as GitHub reads it, with $equations$.

    link: what the address of a link or an image is on the page, or empty for an image that is not
    there yet. ValueError: an equation that cannot be read.
    """
    parser = MarkdownIt("commonmark", {"html": True, "highlight": highlight})
    parser.enable(["table", "strikethrough"])
    parser.use(anchors_plugin, min_level=2, max_level=3, slug_func=slug)
    parser.use(dollarmath_plugin, double_inline=True, allow_labels=False, allow_space=False)
    for kind in ("math_inline", "math_inline_double", "math_block"):
        parser.add_render_rule(kind, lambda _, tokens, at, *rest: equation(tokens[at]))
    parser.add_render_rule("code_block", lambda _, tokens, at, *rest: (  # one that is indented
        highlight(tokens[at].content, "", "")))
    parser.add_render_rule("table_open", lambda *_: '<div class="scroll"><table>\n')
    parser.add_render_rule("table_close", lambda *_: "</table></div>\n")
    image = parser.renderer.rules["image"]
    parser.add_render_rule("image", lambda _, tokens, at, *rest: (
        image(tokens, at, *rest) if tokens[at].attrs["src"] else UNDRAWN))
    tokens = parser.parse(without_comments(text))
    title, headings = "", []
    for at, token in enumerate(tokens):
        if token.type == "heading_open":
            words = plain(tokens[at + 1])
            if token.tag == "h1":
                title = title or words
            elif "id" in token.attrs:
                headings.append((int(token.tag[1]), token.attrs["id"], words))
        if token.type == "th_open" and not tokens[at + 1].content:  # a corner heads nothing
            token.tag = tokens[at + 2].tag = "td"
    for token in tokens:
        for part in [token, *(token.children or [])]:
            for name in ("href", "src"):
                if name in part.attrs:
                    part.attrs[name] = link(part.attrs[name])
            if part.type in ("html_block", "html_inline"):
                part.content = ADDRESS.sub(
                    lambda found: f'{found[1]}{found[2]}="{escape(link(found[4]))}"', part.content
                )
    body = parser.renderer.render(tokens, parser.options, {})
    return Rendered(title, Markup(body), headings)


def without_comments(text: str) -> str:
    """The text without HTML comments, but for those in code: a line may begin with one and yet be
    Markdown."""
    parts, kept, fence = [], [], ""
    for line in text.splitlines(keepends=True):
        mark = FENCE.match(line)
        if fence or mark:
            parts += [strip_comments("".join(kept)), line]
            kept = []
            if not fence:
                fence = mark[1]
            elif mark and mark[1].startswith(fence) and not line.strip().strip(fence[0]):
                fence = ""
        else:
            kept.append(line)
    return "".join([*parts, strip_comments("".join(kept))])


def strip_comments(text: str) -> str:
    return COMMENT.sub(lambda found: found[0] if found[1] else "", text)


def plain(token) -> str:
    """The words of a heading."""
    return "".join(part.content for part in token.children if part.type in ("text", "code_inline"))


def slug(heading: str) -> str:
    """The anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def equation(token) -> str:
    """LaTeX as MathML Core, in a box of its own if it is displayed. ValueError: it is wrong."""
    latex, displayed = token.content.strip(), token.type != "math_inline"
    converter = LatexToMathML(annotation=True, fancy_error=False)
    try:
        math = converter.convert_with_local_state(latex, displaystyle=displayed)
    except LatexError as error:
        raise ValueError(f"the equation {latex} cannot be read: {error}") from error
    if not displayed:
        return math
    tag = "div" if token.type == "math_block" else "span"  # which may stand in a paragraph
    return f'<{tag} class="scroll equation">{math}</{tag}>'


def highlight(code: str, language: str, _) -> str:
    """What stands in a fence, coloured if its language is known."""
    lines = "\n".join(spans(line) for line in lexed(code.rstrip("\n"), language=language))
    return f'<pre class="code scroll"><code>{lines}\n</code></pre>'


def lexed(code: str, language: str = "", file: str = "") -> list[Line]:
    """The lines of code in parts, by the language or the name of the file."""
    options = {"stripnl": False, "ensurenl": False}
    try:
        lexer = (get_lexer_by_name(language, **options) if language
                 else get_lexer_for_filename(file, **options))
    except ClassNotFound:
        lexer = TextLexer(**options)
    lines: list[Line] = [[]]
    for kind, text in lexer.get_tokens(code + "\n"):  # some lexers know a line by its end
        while kind not in STANDARD_TYPES:
            kind = kind.parent
        first, *rest = text.split("\n")
        lines[-1].append((STANDARD_TYPES[kind], first))
        lines.extend([(STANDARD_TYPES[kind], part)] for part in rest)
    return lines[:-1]


def spans(line: Line, words: list[tuple[str, bool]] | None = None) -> str:
    """A line as HTML. words: its parts otherwise, and of each whether it is to be marked."""
    kinds = [kind for kind, text in line for _ in text]
    text = "".join(text for _, text in line)
    marked = [new for word, new in words or [(text, False)] for _ in word]
    parts, end = [], 0
    for (kind, new), group in groupby(zip(kinds, marked)):
        start, end = end, end + len(list(group))
        part = escape(text[start:end])
        if kind and not part.isspace():
            part = f'<span class="{kind}">{part}</span>'
        parts.append(f"<mark>{part}</mark>" if new else str(part))
    return "".join(parts)
