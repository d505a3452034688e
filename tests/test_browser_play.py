"""The page of sample.py --web in a real browser, if there is one."""

import json
import threading
import time
from contextlib import contextmanager

import pytest

import data
import nanogpt
import sample
from book import play, shelf
from data import runs
from nanogpt import generate as loop

SIZES = [(380, 800), (1400, 900)]
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
LETTERS = "abcdefghij <>&/"
SMALL = dict(layers=2, heads=2, width=8, context=3, embed=4)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A small untrained run of every stage; gpt on a text, the others on lines."""
    import torch

    root = tmp_path_factory.mktemp("play") / "runs"
    tokenizer = data.CharTokenizer(LETTERS)
    for stage in nanogpt.STAGES:
        torch.manual_seed(0)
        sizes = {n: SMALL[n] for n in nanogpt.sizes(stage) if n in SMALL}
        model = nanogpt.build(stage, tokenizer.vocab_size, 16, **sizes)
        lines = stage != "gpt"
        config = {"model": stage, "block_size": 16, "sizes": sizes, "data": "a<b>letters",
                  "kind": "lines" if lines else "text", "separated": lines}
        (root / stage).mkdir(parents=True)
        runs.write_json(root / stage / "config.json", config)
        runs.save_checkpoint(root / stage / "best.pt", {
            "config": config, "tokenizer": tokenizer.to_dict(), "model": model.state_dict(),
            "progress": {"val_loss": 2.5},
        })
    return root


@contextmanager
def serving(root, *flags):
    """A server of these runs, until the end or until it is shut down."""
    args = sample.make_parser().parse_args(["--web", "--device=cpu", *flags])
    server = play.Server(shelf.Shelf(args, root))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.close()
        thread.join()


@pytest.fixture(scope="module")
def server(root):
    with serving(root, "--top-p=0.9") as server:
        yield server


@pytest.fixture
def opened(page, server):
    """The page, where all that it first asks for has come."""
    page.goto(f"http://127.0.0.1:{server.server_port}/")
    settle(page)
    return page


def settle(page):
    """Wait until both sides have been drawn for what stands on the page now."""
    until(page, "panes.length === 2 && panes.every((pane) => !pane.looking && !pane.going)")


def until(page, condition):
    """Wait for a condition in JavaScript. wait_for_function would be against the page's policy."""
    end = time.monotonic() + 60
    while not page.evaluate(condition):
        assert time.monotonic() < end
        page.wait_for_timeout(10)


def type_in(page, text):
    page.get_by_label("A beginning").fill(text)
    settle(page)


def shares(page, side):
    """The rows of the bars of one side (0 or 1): token, share."""
    rows = page.locator(".pane").nth(side).locator(".next li:visible")
    return [tuple(row.split("\n")) for row in rows.all_inner_texts()]


def faults(page):
    """What axe-core finds amiss."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright",
                              reason="needs pip install -e '.[browser]'")
    found = axe.Axe().run(page, options=RULES).response["violations"]
    return [(rule["id"], node["html"][:200]) for rule in found for node in rule["nodes"]]


def test_it_begins_with_two_runs(opened):
    assert opened.get_by_label("Left run", exact=True).input_value() == "bigram"
    assert opened.get_by_label("Right run", exact=True).input_value() == "gpt"
    assert opened.locator("#top_p").input_value() == "0.9"  # as on the command line
    options = opened.get_by_label("Left run", exact=True).locator("option").all()
    assert len(options) == len(nanogpt.STAGES)
    assert opened.get_by_label("A beginning").input_value() == ""  # what stood there has an m
    assert not opened.locator(".error:visible").count()
    assert "a<b>letters" in options[0].inner_text()


def test_the_bars_are_what_the_server_says_and_follow_the_typing(opened):
    seen = []
    opened.on("response", lambda answer: seen.append(answer) if "look" in answer.url else None)
    type_in(opened, "")
    opened.get_by_label("A beginning").press_sequentially("abc", delay=20)
    settle(opened)
    asked = [json.loads(answer.request.post_data) for answer in seen]
    for side, run in enumerate(("bigram", "gpt")):
        last = max(i for i, body in enumerate(asked) if body["run"] == run)
        assert asked[last]["prompt"] == "abc"
        told = seen[last].json()["next"][:16]
        found = shares(opened, side)
        assert len(found) == len(told)
        for (_, share), row in zip(found, told):
            assert float(share.strip("<%")) == pytest.approx(100 * row["chance"], abs=0.06)
        widths = opened.evaluate(f"""[...document.querySelectorAll(".pane")[{side}]
            .querySelectorAll("i.chance")].map((bar) => parseFloat(bar.style.width) || 0)""")
        chances = [row["chance"] for row in told]
        assert [w > 0 for w in widths[:len(told)]] == [c > 0 for c in chances]


def test_a_bar_that_is_chosen_is_added(opened):
    type_in(opened, "a")
    button = opened.locator(".pane").nth(0).locator(".next button:enabled").first
    added = button.locator(".token").inner_text()
    button.focus()
    opened.keyboard.press("Enter")
    settle(opened)
    assert opened.get_by_label("A beginning").input_value() == "a" + added.replace("␣", " ")


def test_top_k_and_temperature_move_the_bars(opened):
    type_in(opened, "ab")
    opened.locator("#top_p").fill("1")
    opened.get_by_label("Top-k").fill("2")
    settle(opened)
    for side in (0, 1):
        drawn = [share for _, share in shares(opened, side) if share != "0%"]
        assert len(drawn) == 2
    opened.locator("#temperature").focus()
    opened.keyboard.press("Home")  # 0: the likeliest alone
    settle(opened)
    assert opened.locator("#temperature-value").inner_text() == "0.00"
    for side in (0, 1):
        assert [share for _, share in shares(opened, side) if share != "0%"] == ["100.0%"]


@pytest.mark.parametrize("stage", nanogpt.STAGES)
def test_every_picture_is_drawn(opened, stage):
    """Something is painted, and the arrow keys read a number of it."""
    type_in(opened, "abc fed")
    opened.get_by_label("Left run", exact=True).select_option(stage)
    settle(opened)
    pane = opened.locator(".pane").nth(0)
    picker = pane.get_by_label("Picture")
    for name in picker.locator("option").all_inner_texts():
        picker.select_option(name)
        settle(opened)
        assert pane.locator(".caption").inner_text()
        for canvas in pane.locator("canvas").all():
            colours = canvas.evaluate("""(canvas) => {
                const context = canvas.getContext("2d");
                const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
                return new Set(new Uint32Array(pixels.buffer)).size; }""")
            assert colours > 3, name
            assert canvas.get_attribute("aria-label")
            canvas.focus()
            opened.keyboard.press("ArrowLeft")
            assert pane.locator(".cell").inner_text().rsplit(": ")[1].lstrip("-")[0].isdigit()
            canvas.hover()
            assert pane.locator(".cell").inner_text()


def test_samples_come_whole_and_as_the_command_line_has_them(opened, server):
    type_in(opened, "ab")
    opened.locator("#top_p").fill("1")
    opened.get_by_label("Seed", exact=True).fill("4")
    opened.get_by_role("button", name="Sample both").click()
    settle(opened)
    for side, run in enumerate(("bigram", "gpt")):
        model, tokenizer = sample.load_run(server.shelf.root / run)
        num, length = (10, 32) if run == "bigram" else (1, 500)
        expected = sample.texts(model, tokenizer, "ab", num, length, run != "gpt", seed=4)
        lines = opened.locator(".samples").nth(side).locator("> div")
        assert lines.evaluate_all("(all) => all.map((one) => one.textContent)") == expected
        assert "seed 4" in opened.locator(".status").nth(side).inner_text()
    opened.keyboard.press("Control+Enter")  # another seed each time
    settle(opened)
    assert opened.get_by_label("Seed", exact=True).input_value() == "5"
    assert "seed 5" in opened.locator(".status").nth(1).inner_text()


def test_a_sample_is_shown_while_it_grows_and_can_be_stopped(opened, server, monkeypatch):
    go = threading.Event()
    drawn = loop.draw

    def slow(*arguments):
        go.wait(0.02)
        return drawn(*arguments)

    monkeypatch.setattr(loop, "draw", slow)
    type_in(opened, "ab")
    opened.get_by_role("button", name="Sample both").click()
    stop = opened.get_by_role("button", name="Stop")
    samples = opened.locator(".samples").nth(1)
    until(opened, "document.querySelectorAll('.samples')[1].textContent.length > 4")
    assert samples.locator(".growing").count() == 1
    stop.click()
    settle(opened)
    assert stop.is_disabled()
    assert "stopped" in opened.locator(".status").nth(1).inner_text()
    assert 4 < len(samples.inner_text()) < 400
    go.set()
    opened.wait_for_timeout(50)
    opened.get_by_label("Right run", exact=True).select_option("rnn")  # goes on with another run
    settle(opened)
    opened.get_by_role("button", name="Sample both").click()
    settle(opened)
    assert "tokens" in opened.locator(".status").nth(1).inner_text()


def test_what_is_typed_and_sampled_is_text(opened):
    prompt = "<b>a</b><i>&a"  # of letters that the runs know
    type_in(opened, prompt)
    opened.get_by_role("button", name="Sample both").click()
    settle(opened)
    for side in (0, 1):
        pane = opened.locator(".pane").nth(side)
        assert pane.locator("b").count() == 0
        assert pane.locator(".samples").inner_text().startswith(prompt)
        assert "".join(pane.locator(".typed span:not(.special)").all_inner_texts()) == prompt


def test_an_unseen_character_gets_a_sentence_and_goes_with_it(opened):
    type_in(opened, "aX")
    for error in opened.locator(".error").all():
        assert "'X'" in error.inner_text()
    opened.get_by_label("A beginning").press("Backspace")
    settle(opened)
    for error in opened.locator(".error").all():
        assert not error.is_visible()


def test_a_long_beginning(opened):
    type_in(opened, "abcdefghij " * 200)
    for side in (0, 1):
        assert shares(opened, side)
        assert "before" in opened.locator(".typed").nth(side).inner_text()
    assert opened.evaluate("document.documentElement.scrollWidth") == 1400


def test_the_theme(opened):
    def shades():
        return opened.evaluate("""[getComputedStyle(document.body).backgroundColor,
            document.querySelector("canvas").toDataURL()]""")

    light = shades()
    opened.get_by_role("button", name="Dark theme").click()
    dark = shades()
    assert light[0] != dark[0] and light[1] != dark[1]
    opened.reload()
    settle(opened)
    assert shades()[0] == dark[0]
    opened.get_by_role("button", name="Light theme").click()
    opened.emulate_media(color_scheme="dark")
    assert shades()[0] == dark[0]  # what the system says again


@pytest.mark.parametrize("width, height", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everyone_can_read_it(opened, width, height, scheme):
    opened.emulate_media(color_scheme=scheme)
    opened.set_viewport_size({"width": width, "height": height})
    opened.get_by_label("Left run", exact=True).select_option("transformer")
    opened.get_by_label("Right run", exact=True).select_option("lstm")
    type_in(opened, "abcdefghij " * 9)
    opened.get_by_role("button", name="Sample both").click()
    settle(opened)
    assert opened.evaluate("document.documentElement.scrollWidth") == width
    assert not faults(opened)
    type_in(opened, "aX")  # with sentences of what is wrong
    assert opened.evaluate("document.documentElement.scrollWidth") == width
    assert not faults(opened)


def test_the_keyboard_reaches_everything(opened):
    reached = set()
    for _ in range(80):
        opened.keyboard.press("Tab")
        reached.add(opened.evaluate("""[document.activeElement.id, document.activeElement.className,
            document.activeElement.tagName].find((name) => name)"""))
    assert {"theme", "prompt", "temperature", "top_p", "top_k", "seed", "next-seed", "sample",
            "run-left", "run-right", "picture-left", "picture-right", "num", "length", "samples",
            "CANVAS"} <= reached


def test_what_was_given_on_the_command_line_is_what_is_asked_for(page, root):
    """Between the steps of a slider and beyond its ends; one that is moved goes by hundredths."""
    given = {"temperature": 3.777, "top_p": 0.01234, "top_k": 123456, "seed": 2**53 - 1}
    asked = []
    page.on("request", lambda request: request.post_data and asked.append(
        json.loads(request.post_data)))
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    with serving(root, *flags) as server:
        page.goto(f"http://127.0.0.1:{server.server_port}/")
        settle(page)
        assert asked and all(body[name] == given[name] for body in asked for name in given)
        assert page.locator("#temperature-value").inner_text() == "3.777"
        assert page.locator("#top_p-value").inner_text() == "0.01234"
        page.get_by_role("button", name="Sample both").click()
        settle(page)
        assert asked[-1] | given == asked[-1] and "num" in asked[-1]
        page.locator("#temperature").focus()
        page.keyboard.press("ArrowLeft")
        settle(page)
        moved = asked[-1]["temperature"]
        assert 3 < moved < 3.777 and moved == round(moved, 2)


def test_a_server_that_has_gone(chromium, root):
    """A sentence on the page; the console says of itself that the connection failed."""
    context = chromium.new_context()
    context.set_default_timeout(60_000)
    page, said = context.new_page(), []
    context.on("console", lambda message: said.append(message.text))
    context.on("weberror", lambda error: said.append(str(error.error)))
    with serving(root) as server:
        page.goto(f"http://127.0.0.1:{server.server_port}/")
        settle(page)
        assert not said
    type_in(page, "ab")
    for error in page.locator(".error").all():
        assert "is it still running" in error.inner_text()
    page.get_by_role("button", name="Sample both").click()
    settle(page)
    assert "is it still running" in page.locator(".error").first.inner_text()
    assert said and all("ERR_CONNECTION_REFUSED" in text for text in said)
    context.close()
