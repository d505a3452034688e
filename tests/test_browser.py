"""The book in a real browser, if there is one."""

from itertools import islice

import pytest

SIZES = [(380, 800), (1400, 900)]
KINDS = [  # a page of each kind
    "index.html", "about.html", "kernels/attention.html", "diff/index.html",
    "diff/rnn-to-lstm.html", "makemore/rnn.py.html", "makemore/index.html",
    "makemore/transformer.html", "nanogpt/gpt.html", "book/sampling.html",
]
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
CONTRAST = {"type": "rule", "values": ["color-contrast"]}


def articles(book):
    from book import site

    return [site.address(file) for part in site.CHAPTERS.values() for file in part
            if (site.ROOT / file).is_file()]


def faults(page, rules):
    """What these rules of axe-core find amiss with a page."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright",
                              reason="needs pip install -e '.[browser]'")
    # preload would read the style sheets once more, which a page from the disk may not
    options = {"runOnly": rules, "preload": False}
    found = axe.Axe().run(page, options=options).response["violations"]
    return [(rule["id"], node["html"][:200]) for rule in found for node in rule["nodes"]]


def too_wide(page):
    return page.evaluate("document.documentElement.scrollWidth - innerWidth")


def test_every_page_loads(page, book):
    """Errors and requests are counted by the fixture; of the diffs every tenth is looked at."""
    pages = sorted(path for path in book.rglob("*.html") if path.parent.name != "diff")
    pages += islice(sorted(book.glob("diff/*.html")), 0, None, 10)
    for path in pages:
        page.goto(path.as_uri(), wait_until="load")
        assert page.locator("h1").count() == 1
        assert page.locator("#theme").is_visible(), path


@pytest.mark.parametrize("width, height", SIZES)
def test_nothing_is_wider_than_the_page(page, book, width, height):
    page.set_viewport_size({"width": width, "height": height})
    for address in {*KINDS, *articles(book), "diff/gpt-to-mlp-numpy.html"}:
        page.goto((book / address).as_uri())
        assert too_wide(page) <= 0, address
        page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        assert too_wide(page) <= 0, address


@pytest.mark.parametrize("scheme, width, rules", [
    ("light", 1400, RULES), ("light", 380, RULES), ("dark", 1400, CONTRAST),
])
def test_everyone_can_read_it(page, book, scheme, width, rules):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    for address in KINDS:
        page.goto((book / address).as_uri())
        assert not faults(page, rules), address


def test_the_theme_follows_the_system_until_it_is_chosen(page, book):
    def shade():
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    page.goto((book / "index.html").as_uri())
    light = shade()
    page.emulate_media(color_scheme="dark")
    dark = shade()
    assert light != dark
    button = page.locator("#theme")
    assert button.get_attribute("aria-label") == "Light theme"
    button.click()
    assert shade() == light and button.get_attribute("aria-label") == "Dark theme"
    page.wait_for_timeout(500)  # Chromium writes down what is stored a moment later
    page.goto((book / "about.html").as_uri())
    assert shade() == light  # remembered
    page.locator("#theme").click()
    page.emulate_media(color_scheme="light")
    assert shade() == light  # what the system says again


def test_the_picker(page, book):
    page.goto((book / "diff/rnn-to-lstm.html").as_uri())
    before, after = page.locator("select[name=before]"), page.locator("select[name=after]")
    before.select_option("lstm")  # which was at the other side
    assert after.input_value() == "rnn"
    after.select_option("gpt")
    page.get_by_role("button", name="Compare").click()
    page.wait_for_url("**/diff/lstm-to-gpt.html")
    page.get_by_role("link", name="Swap").click()
    page.wait_for_url("**/diff/gpt-to-lstm.html")
    page.goto((book / "index.html").as_uri())
    page.locator("form.picker").get_by_role("button").click()
    page.wait_for_url("**/diff/rnn-to-lstm.html")


def test_sides_and_folds(page, book):
    page.goto((book / "diff/lstm-to-gru.html").as_uri())
    gone, come = page.locator("del").first, page.locator("ins").first
    assert gone.bounding_box()["x"] + 300 < come.bounding_box()["x"]
    assert gone.bounding_box()["y"] == come.bounding_box()["y"]
    fold = page.locator("details.fold").first
    hidden = fold.locator("[data-n]").first
    assert not hidden.is_visible()
    fold.locator("summary").focus()
    page.keyboard.press("Enter")
    assert hidden.is_visible()
    button, folded = page.locator("#unfold"), page.locator("details.fold:not([open])")
    if not folded.count():
        assert button.inner_text() == "Fold the unchanged"
        button.click()
    assert button.inner_text() == "Unfold all"
    button.click()
    assert folded.count() == 0
    page.set_viewport_size({"width": 380, "height": 800})
    assert gone.bounding_box()["x"] == come.bounding_box()["x"]


def test_the_plot(page, book):
    page.goto((book / "index.html").as_uri())
    stages, panel = page.locator("g.stage"), page.locator("#ladder .samples")
    assert stages.count() == 7
    assert panel.locator("h3").inner_text() == "transformer"  # the best of all
    stages.nth(3).locator("circle").hover()
    assert panel.locator("h3").inner_text() == "rnn"
    assert panel.locator("li").count() == 10
    assert panel.locator("li").first.inner_text() == "rnn</script><b>&0"
    where = stages.nth(3).locator("circle").bounding_box()
    page.get_by_label("seconds of training").focus()
    page.keyboard.press("Space")
    assert stages.nth(3).locator("circle").bounding_box() != where
    assert page.locator("polyline").count() == 7
    page.keyboard.press("Tab")  # from the switch
    page.keyboard.press("Tab")  # into the plot
    assert page.evaluate("document.activeElement.dataset.stage") == "bigram"
    assert panel.locator("h3").inner_text() == "bigram"
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.stage") == "mlp"
    assert panel.locator("h3").inner_text() == "mlp"
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert panel.locator("h3").inner_text() == "transformer"
    page.get_by_label("without the bigram").check()
    assert stages.count() == 6


def test_the_keyboard_reaches_what_scrolls(page, book):
    page.set_viewport_size({"width": 380, "height": 800})
    page.goto((book / "kernels/attention.html").as_uri())
    boxes = page.evaluate("""[...document.querySelectorAll(".scroll")]
        .filter((box) => box.scrollWidth > box.clientWidth)
        .map((box) => [box.tabIndex, box.getAttribute("aria-label")])""")
    assert boxes and all(index == 0 and label for index, label in boxes)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the text"


def test_without_scripts_all_can_be_read(chromium, book):
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((book / "index.html").as_uri())
    assert page.locator("tbody tr").count() == 8
    page.get_by_role("link", name="step by step").click()
    page.get_by_role("link", name="rnn → lstm").click()
    assert page.locator("del").first.is_visible()
    context.close()
