"""The articles hold what code and results say today; the marks that see to it; the results."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

import book
import data
import nanogpt
import train
from book import clone, diagrams, marks, results, tables
from makemore import __main__ as ladder
from makemore import diff, stage_class

ROOT = Path(__file__).parents[1]
LADDER = ROOT / "book/results/ladder.json"
TINY = ("--lines", "--steps=6", "--batch-size=8", "--eval-every=3", "--block-size=7",
        "--device=cpu")
BATCHES = data.batches


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder that stands for the project: code, results and an article that shows them."""
    monkeypatch.setattr(marks, "ROOT", tmp_path)
    monkeypatch.setattr(marks, "FOLDERS", (".",))
    (tmp_path / "code.py").write_text(CODE, "utf-8")
    put(tmp_path / "numbers.json", {"runs": {"a": {"loss": 2.0, "text": "x"}}, "list": [8, 4],
                                     "rows": [{"stage": "a", "seed": 1, "loss": 3},
                                              {"stage": "a b, c", "seed": 1, "loss": 5},
                                              {"stage": "a", "seed": 2, "loss": 6}]})
    return tmp_path


CODE = '''"""A file."""

SIZE = 3


@cached
def first(x):
    """With ``` in it.

    ```
    first(1)
    ```
    """
    return x


class Cell:
    """A cell."""

    def first(self):
        a = 1
        if a:
            b = 2
        return a
'''


def put(path, value):
    path.write_text(json.dumps(value), "utf-8")


def filled(text):
    """An article with all of its marks filled, none of which may have a fault."""
    after, _, faults = marks.fill(text)
    assert not faults
    return after


def between(text):
    """What the marks of an article hold."""
    found, faults = marks.find(text)
    assert not faults
    return [text[mark.start:mark.end] for mark in found]


# The project's own articles


@pytest.mark.parametrize("path", marks.articles(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_article_is_fresh(path):
    _, stale, faults = marks.fill(path.read_text("utf-8"))
    shown = [f"line {mark.line}: {mark.kind} {' '.join(mark.words)}" for mark in stale]
    assert not faults
    assert not shown, "run: python -m book.marks"


@pytest.mark.parametrize("path", marks.articles(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_article_is_made_again_byte_for_byte(path):
    before = path.read_bytes().decode("utf-8")
    found, _ = marks.find(before)
    spoilt, done = "", 0
    for mark in found:
        spoilt += before[done:mark.start] + ("9" if mark.kind == "value" else "\nold\n\nolder\n")
        done = mark.end
    after, stale, faults = marks.fill(spoilt + before[done:])
    assert (after, len(stale), faults) == (before, len(found), [])


def test_all_markdown_of_the_project_is_looked_at():
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git repository")
    written = {ROOT / name for name in listed.stdout.split()
               if not name.startswith("benchmarks/results/")}  # whose tables their scripts make
    assert written <= set(marks.articles())


@pytest.mark.parametrize("stage", [*nanogpt.STAGES, *results.IN_NUMPY])
def test_the_results_are_of_what_the_bare_command_does(stage):
    path = LADDER.with_name("numpy.json") if stage in results.IN_NUMPY else LADDER
    found = json.loads(path.read_text("utf-8"))["stages"][stage]
    settings = results.settings_of(results.command(stage))
    model = results.model_of(settings)
    assert results.is_done(found, settings, model), "run: python -m book.results"
    assert found["parameters"] == model["parameters"]
    about = found["about"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", about["date"])
    assert re.match("[0-9a-f]{40}", about["environment"]["commit"])
    assert {"python", "torch", "numpy", "platform", "threads"} <= about["environment"].keys()
    steps, tokens, seconds, losses = zip(*found["curve"])
    assert list(steps) == sorted(set(steps)) and steps[-1] == found["steps"]
    assert list(tokens) == sorted(tokens) and tokens[-1] == found["tokens"]
    assert list(seconds) == sorted(seconds)
    assert losses[0] > min(losses) or steps == (0,)  # counted, not learned
    assert min(losses) == pytest.approx(found["val_loss"], rel=1e-3)
    assert found["samples"] and set(found["known_samples"]) <= set(found["samples"])


# Marks


def test_filling_once_is_enough(project):
    article = project / "a.md"
    text = ("# A\n\n<!-- code code.py Cell -->\n<!-- end -->\n\nIt is <!-- value numbers.json "
            "list.0 -->?<!-- end --> or <!-- value numbers.json runs.a.loss .2f --><!-- end -->.\n"
            "\n<!-- diff rnn lstm -->\nold\n<!-- end -->  \n<!-- code code.py SIZE -->  \r\n"
            "old\r\n<!-- end -->\r\n\n\nthe end, no new line")
    once = filled(text)
    assert filled(once) == once and once != text
    skeleton = [re.sub(r"(-->)(?:(?!<!-- end).)*?(<!-- end)", r"\1\2", t, flags=re.S)
                for t in (text, once)]
    assert skeleton[0] == skeleton[1]
    assert "It is <!-- value numbers.json list.0 -->8<!-- end --> or" in once
    article.write_bytes(once.encode())
    assert marks.fill(article.read_bytes().decode())[1] == []


def test_text_without_marks_stays():
    for text in ("", "a", "a\r\nb\rc\n\n", "```\n<!-- table x -->\n", "`<!-- value a b -->`\n",
                 "````md\n```\n<!-- end -->\n````\n", "a ``<!-- end -->` `` b",
                 "~~~\n```\n~~~\n`` ` <!-- `` --\n"):
        assert marks.fill(text) == (text, [], [])


@pytest.mark.parametrize("words, shown", (
    ("code.py SIZE", "SIZE = 3"),
    ("code.py first", '@cached\ndef first(x):\n    """With'),
    ("code.py Cell.first", "def first(self):\n    a = 1\n    if a:\n        b = 2\n    return a"),
    ('code.py Cell.first from "if" to "b ="', "if a:\n    b = 2"),
    ('code.py Cell.first from "a = 1" to "a = 1"', "a = 1"),
    ('code.py Cell from "def" to "def" from "b =" to "return"',
     "def first(self):\n        ...\n        b = 2\n    return a"),
    ("code.py", CODE.rstrip("\n")),
))
def test_code(project, words, shown):
    (held,) = between(filled(f"<!-- code {words} -->\n<!-- end -->\n"))
    lines = held.splitlines()
    fence = "````" if "```" in shown or words.endswith(" first") else "```"
    assert lines[:2] == ["", f"{fence}python"] and lines[-1] == fence
    assert "\n".join(lines[2:-1]).startswith(shown)
    if words != "code.py first":
        assert "\n".join(lines[2:-1]) == shown


def test_diffs_are_those_of_the_command(command):
    _, said, _ = command(ladder.main, "diff", "rnn", "lstm")
    (held,) = between(filled("<!-- diff rnn lstm -->\n<!-- end -->\n"))
    assert held == f"\n```diff\n{said}```\n"
    whole = said.splitlines()
    begins = [n for n, line in enumerate(whole) if line.startswith("@@")]
    (held,) = between(filled(f"<!-- diff rnn lstm hunks 1-{len(begins)} -->\n<!-- end -->\n"))
    assert held.splitlines()[2:-1] == whole[2:-1]
    (held,) = between(filled("<!-- diff rnn lstm hunk 2 -->\n<!-- end -->\n"))
    assert held.splitlines()[2:-1] == whole[begins[1]:-1]
    _, said, _ = command(ladder.main, "diff", "rmsprop", "adam", "--context=0")
    (held,) = between(filled("<!-- diff rmsprop adam context 0 -->\n<!-- end -->\n"))
    assert held == f"\n```diff\n{said}```\n"
    (held,) = between(filled('<!-- diff rnn lstm from "-class" to "+class" -->\n<!-- end -->\n'))
    assert held == "\n```diff\n-class RNN(LanguageModel):\n+class LSTM(LanguageModel):\n```\n"


@pytest.mark.parametrize("words, shown", (
    ("runs.a.loss .4f", "2.0000"), ("runs.a.loss", "2.0"), ("runs.a.text", "x"),
    ("list.0 / list.1 .1f", "2.0"), ("list.1 / list.0 .0%", "50%"), ("list.0 / 1e3 .3f", "0.008"),
    ("list.0 - list.1", "4"), ("list.0 - 1.5", "6.5"), ("list.0 ,", "8"),
    ("rows.seed=2.loss", "6"), ("rows.stage=a&seed=2.loss", "6"),
    ('"rows.stage=a b, c.loss" .1f', "5.0"), ("rows.stage=a&seed=2.loss / rows.0.loss", "2.0"),
))
def test_values(project, words, shown):
    assert between(filled(f"a <!-- value numbers.json {words} -->?<!-- end -->")) == [shown]


def test_values_in_the_cells_of_a_table(project):
    text = "| a | b |\n| --- | --- |\n" + "| <!-- value numbers.json list.0 --><!-- end --> " * 2
    assert between(filled(text + "|\n")) == ["8", "8"]


@pytest.mark.parametrize("text, line, said", (
    ("a\n\n<!-- tabel ladder -->\n<!-- end -->\n", 3, "'tabel'. Did you mean table?"),
    ("<!-- table ladr -->\n<!-- end -->\n", 1, "no table ladr. Did you mean ladder?"),
    ("<!-- table -->\n<!-- end -->\n", 1, "missing a required argument: 'name'"),
    ("<!-- table a b -->\n<!-- end -->\n", 1, "too many positional arguments"),
    ("<!-- table ladder -->\nold\n", 1, "the mark table has no <!-- end -->"),
    ("a\n<!-- end -->\n", 2, "ends no mark"),
    ("a <!-- table ladder -->\n<!-- end -->\n", 1, "needs a line of its own"),
    (" <!-- table ladder -->\n<!-- end -->\n", 1, "not indented"),
    ("<!-- table ladder -->\nold <!-- end -->\n", 2, "needs a line of its own"),
    ("a <!-- value numbers.json list.0 -->\nb <!-- end -->", 1, "no <!-- end --> in its line"),
    ("<!-- value numbers.json list.0 -->8<!-- end -->", 1, "must not begin a line"),
    ("- > <!-- value numbers.json list.0 -->8<!-- end -->", 1, "must not begin a line"),
    ("a <!-- value number.json list.0 -->8<!-- end -->", 1, "no file number.json."),
    ("a <!-- value book/results/x.json a -->8<!-- end -->", 1, "python -m book.results makes it"),
    ("a <!-- value code.py a -->8<!-- end -->", 1, "no whole JSON"),
    ("a <!-- value numbers.json runs.a.los -->8<!-- end -->", 1, "no los. Did you mean loss?"),
    ("a <!-- value numbers.json list.2 -->8<!-- end -->", 1, "has no list.2"),
    ("a <!-- value numbers.json rows.stage=c.loss -->8<!-- end -->", 1, "no one row stage=c."),
    ("a <!-- value numbers.json rows.stage=a.loss -->8<!-- end -->", 1, "no one row stage=a."),
    ("a <!-- value numbers.json rows.stage.loss -->8<!-- end -->", 1, "there is no stage."),
    ("a <!-- value numbers.json list.0.x -->8<!-- end -->", 1, "has no list.0.x"),
    ("a <!-- value numbers.json runs.a.text .2f -->8<!-- end -->", 1, "in the format '.2f'"),
    ("a <!-- value numbers.json list.0 .2f 4 -->8<!-- end -->", 1, "one format, not .2f 4"),
    ("a <!-- value numbers.json list.0 / runs.a.text -->8<!-- end -->", 1, "two numbers"),
    ("a <!-- value numbers.json list.0 / 0 -->8<!-- end -->", 1, "the second not 0"),
    ("a <!-- value numbers.json runs.a -->8<!-- end -->", 1, "neither a number nor a text"),
    ("<!-- code gone.py -->\n<!-- end -->", 1, "no file gone.py."),
    ("<!-- code numbers.json rows -->\n<!-- end -->", 1, "numbers.json is no Python"),
    ("<!-- code code.py Cell.second -->\n<!-- end -->", 1, "no Cell.second in code.py"),
    ('<!-- code code.py Cell from "x" -->\n<!-- end -->', 1, 'from "text" to "text", not from x'),
    ('<!-- code code.py Cell from "a" to "z =" -->\n<!-- end -->', 1, "holds 'z ='"),
    ('<!-- code code.py Cell from "a" to "b -->\n<!-- end -->', 1, "a quotation mark is open"),
    ("<!-- diff rnn lstn -->\n<!-- end -->", 1, "no stage lstn. Did you mean lstm?"),
    ("<!-- diff rnn adam -->\n<!-- end -->", 1, "of different kinds"),
    ("<!-- diff rnn lstm hunk 9 -->\n<!-- end -->", 1, "hunks 1 to 2, not 9"),
    ("<!-- diff rnn lstm hunks 2-1 -->\n<!-- end -->", 1, "not 2-1"),
    ("<!-- diff rnn lstm context -->\n<!-- end -->", 1, "context needs a number"),
    ("<!-- diff rnn lstm hunk 1 more -->\n<!-- end -->", 1, 'from "text" to "text"'),
    ("<!-- samples rnn -->\n<!-- end -->", 1, "no file book/results/ladder.json"),
))
def test_what_is_wrong_is_said_in_one_sentence(project, command, text, line, said):
    article = project / "a.md"
    article.write_text(text, "utf-8")
    code, out, errors = command(marks.main)
    first, *others = errors.splitlines()
    assert code == 2 and out == "" and not others
    assert re.match(rf"error: a\.md:{line}: ", first) and said in first and first[-1] in ".?"
    assert article.read_text("utf-8") == text


def test_one_fault_does_not_keep_the_others_from_being_filled(project, command):
    article = project / "a.md"
    mark = "a <!-- value numbers.json {} -->old<!-- end -->\n"
    article.write_text("".join(map(mark.format, ("list.0", "gone", "list.1"))), "utf-8")
    code, out, errors = command(marks.main)
    assert code == 2 and errors.count("\n") == 1 and "a.md:2: " in errors
    assert between(article.read_text("utf-8")) == ["8", "old", "4"]
    assert re.findall(r"a\.md:(\d): .*: filled", out) == ["1", "3"]
    article.write_text("<!-- table ladder -->\n<!-- code code.py SIZE -->\n<!-- end -->\n", "utf-8")
    code, out, errors = command(marks.main)
    assert code == 2 and "a.md:1: the mark table has no <!-- end -->" in errors
    assert "a.md:2: code code.py SIZE: filled" in out


def test_a_change_of_results_or_code_is_noticed(project, command):
    article = project / "a.md"
    article.write_text("a <!-- value numbers.json list.0 --><!-- end -->\n\n"
                       "<!-- code code.py Cell.first -->\n<!-- end -->\n", "utf-8")
    assert command(marks.main)[0] == 0 and command(marks.main, "--check") == (0, "", "")
    before = article.read_text("utf-8")
    put(project / "numbers.json", {"list": [9]})
    code, out, _ = command(marks.main, "--check")
    assert code == 1 and "a.md:1: value numbers.json list.0: is stale" in out
    (project / "code.py").write_text(CODE.replace("b = 2", "b = 3"), "utf-8")
    code, out, _ = command(marks.main, "--check")
    assert code == 1 and "a.md:3: code code.py Cell.first: is stale" in out
    assert article.read_text("utf-8") == before  # --check changes nothing
    assert command(marks.main)[0] == 0 and command(marks.main, "--check")[0] == 0
    assert article.read_text("utf-8") == before.replace(">8<", ">9<").replace("b = 2", "b = 3")


def test_samples_say_which_are_known(project):
    stages = {"rnn": {"samples": ["ada", "", "bo```b"], "known_samples": ["ada"]},
              "gpt": {"samples": ["Once.\n```\nTwice."], "known_samples": []}}
    (project / "book/results").mkdir(parents=True)
    put(project / "book/results/ladder.json", {"stages": stages})
    held = between(filled("<!-- samples rnn -->\n<!-- end -->\n<!-- samples gpt -->\n<!-- end -->"))
    assert held == ["\n```text\nada  (in the training set)\n\nbo```b\n```\n",
                    "\n````text\nOnce.\n```\nTwice.\n````\n"]


def test_tables_follow_their_results(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    with pytest.raises(ValueError, match="needs .*nano.json, which is not there"):
        marks.table("nano")
    (tmp_path / "benchmarks/results").mkdir(parents=True)
    (tmp_path / "book/results").mkdir(parents=True)
    files = {name: f"benchmarks/results/{name}.json"
             for name in ("ladder", "without_torch", "nano", "race", "baby", "pieces", "growth",
                          "text", "sampling", "tunings")}
    files["sorting"] = "benchmarks/results/finetune.json"
    files |= dict.fromkeys(("instructions", "string_tasks", "answers"),
                           "benchmarks/results/instruct.json")
    (tmp_path / "nanogpt").mkdir()
    for file in [*files.values(), "book/results/ladder.json", "nanogpt/expected.json"]:
        shutil.copy(ROOT / file, tmp_path / file)
    files |= {"rungs": "book/results/ladder.json", "peers": files["race"],
              "floors": files["race"], "expected": "nanogpt/expected.json"}
    assert set(files) == set(tables.TABLES)
    for name, file in files.items():
        table = marks.table(name)
        cells = {line.count("|") for line in table.splitlines()}
        assert len(cells) == 1 and table.splitlines()[1].startswith("| --- |")
        path = tmp_path / file
        text = path.read_text("utf-8")
        keys = "loss|ratio|accuracy|bits_per_char|backwards|greedy|seconds|without|per_token"
        changed = rf'(({keys}|iteration)": "?|\d": \[\s*)(?!null|\[|{{)'
        path.write_text(re.sub(changed, r'\g<0>9', text), "utf-8")
        assert marks.table(name) != table
        path.write_text(text, "utf-8")


# Results


@pytest.fixture
def tiny(words, small, tmp_path, monkeypatch, no_plot):
    """tiny(*flags): what python -m book.results --parts ladder does, with runs of a moment."""
    more = []
    monkeypatch.setattr(
        results, "command", lambda stage: [*small(stage), f"--data={words}", *TINY, *more])

    def go(*flags, given=()):
        more[:] = given
        args = ["--parts", "ladder", "--out", tmp_path / "out", "--runs", tmp_path / "runs"]
        results.make(results.make_parser().parse_args([*map(str, args), *flags]))
        return json.loads((tmp_path / "out/ladder.json").read_text("utf-8"))

    return go


@pytest.fixture
def begun(monkeypatch):
    """How runs were begun or gone on with, in order."""
    seen = []
    new_run, resume_run = train.new_run, train.resume_run
    monkeypatch.setattr(train, "new_run", lambda args: (seen.append("new_run"), new_run(args)))
    monkeypatch.setattr(
        train, "resume_run", lambda args: (seen.append("resume_run"), resume_run(args)))
    return seen


def test_results_by_part(tiny, begun, tmp_path, capsys):
    first = tiny("--stages", "rnn", "bigram")
    assert list(first["stages"]) == ["bigram", "rnn"]  # in the order of the ladder
    assert begun == ["new_run", "new_run"]
    rnn = first["stages"]["rnn"]
    result = json.loads((tmp_path / "runs/rnn/result.json").read_text("utf-8"))
    assert all(rnn[name] == result[name] for name in results.KEPT)
    assert [point[0] for point in rnn["curve"]] == [0, 3, 6]
    assert len(rnn["samples"]) == 10 and rnn["about"] == first["about"]
    capsys.readouterr()
    second = tiny("--stages", "bigram", "rnn", "gru")
    assert begun == ["new_run"] * 3  # of gru alone
    assert second["stages"] == first["stages"] | {"gru": second["stages"]["gru"]}
    said = capsys.readouterr().out
    assert "[2 of 3] rnn: done on" in said and "[3 of 3] gru: python train.py --model=gru" in said
    assert said.rstrip().endswith("python -m book.marks puts them in.")


def test_a_lost_file_costs_no_training(tiny, begun, tmp_path):
    first = tiny("--stages", "rnn")
    (tmp_path / "out/ladder.json").unlink()
    assert tiny("--stages", "rnn") == first and begun == ["new_run"]
    shutil.rmtree(tmp_path / "runs")
    assert tiny("--stages", "rnn") == first and begun == ["new_run"]


def test_other_settings_and_fresh_train_anew(tiny, begun):
    first = tiny("--stages", "bigram")["stages"]["bigram"]
    second = tiny("--stages", "bigram", given=["--seed=1"])["stages"]["bigram"]
    assert begun == ["new_run"] * 2 and second["test_loss"] != first["test_loss"]
    assert second["settings"] == first["settings"] | {"seed": 1}
    third = tiny("--stages", "bigram", "--fresh")["stages"]["bigram"]
    assert begun == ["new_run"] * 3 and without_times(third) == without_times(first)


def test_other_code_trains_anew(tiny, begun, tmp_path, monkeypatch):
    """What is code, not what is said of it: in results, and in a run that waits to be taken in."""
    source = diff.source
    texts = {"code": source("rnn") + "\nMORE = 1\n", "said": source("rnn") + "\n# more\n"}
    first = tiny("--stages", "rnn", "gru")
    monkeypatch.setattr(diff, "source", lambda name, backend: texts["said"] if name == "rnn"
                        else source(name, backend))
    assert tiny("--stages", "rnn", "gru") == first and begun == ["new_run"] * 2
    monkeypatch.setattr(diff, "source", lambda name, backend: texts["code"] if name == "rnn"
                        else source(name, backend))
    second = tiny("--stages", "rnn", "gru")["stages"]
    assert begun == ["new_run"] * 3 and second["gru"] == first["stages"]["gru"]
    assert second["rnn"]["code"] != first["stages"]["rnn"]["code"]
    (tmp_path / "out/ladder.json").unlink()
    monkeypatch.setattr(diff, "source", source)
    third = tiny("--stages", "rnn", "gru")["stages"]
    assert begun == ["new_run"] * 4 and third["gru"] == first["stages"]["gru"]
    assert third["rnn"]["code"] == first["stages"]["rnn"]["code"]


def test_results_from_before_code_was_noted_count_by_their_parameters(tiny, begun, tmp_path):
    first = tiny("--stages", "rnn")
    path = tmp_path / "out/ladder.json"
    code = first["stages"]["rnn"].pop("code")
    put(path, first)
    (tmp_path / "runs/state.json").unlink()
    assert tiny("--stages", "rnn") == first and begun == ["new_run"]
    path.unlink()  # the run is from before too
    assert tiny("--stages", "rnn") == first and begun == ["new_run"]
    first["stages"]["rnn"]["parameters"] += 1
    put(path, first)
    put(tmp_path / "runs/rnn/result.json",
        json.loads((tmp_path / "runs/rnn/result.json").read_text("utf-8")) | {"parameters": 1})
    assert tiny("--stages", "rnn")["stages"]["rnn"]["code"] == code and begun == ["new_run"] * 2


@pytest.mark.skipif(sys.platform == "win32", reason="no signals to a process of its own")
def test_fresh_results_that_were_stopped_are_gone_on_with(tiny, begun, tmp_path, monkeypatch):
    """The second of three is stopped: the first is taken over, the third is still made anew."""
    stages = "--stages", "bigram", "rnn", "gru"
    first = tiny(*stages)["stages"]

    def batches(*args, **more):
        give = BATCHES(*args, **more)
        return lambda seed, step: (step == 3 and len(begun) == 5
                                   and os.kill(os.getpid(), signal.SIGINT), give(seed, step))[1]

    with monkeypatch.context() as patched:
        patched.setattr(data, "batches", batches)
        with pytest.raises(train.Stopped):
            tiny(*stages, "--fresh")
    assert tiny("--stages", "mlp")["stages"]["rnn"] == first["rnn"]  # others stay as they are
    second = tiny(*stages)["stages"]
    assert begun == ["new_run"] * 6 + ["resume_run", "new_run"]
    for stage in ("bigram", "rnn", "gru"):
        made = json.loads((tmp_path / "runs" / stage / "result.json").read_text("utf-8"))
        assert second[stage]["seconds"] == made["seconds"]
        assert without_times(second[stage]) == without_times(first[stage])
    assert tiny(*stages)["stages"] == second and len(begun) == 8


@pytest.mark.skipif(sys.platform == "win32", reason="no signals to a process of its own")
def test_stopped_results_go_on_where_they_were(tiny, begun, command, tmp_path, monkeypatch):
    never = tiny("--stages", "lstm")["stages"]["lstm"]
    shutil.rmtree(tmp_path / "runs"), shutil.rmtree(tmp_path / "out")

    def batches(*args, **more):
        give = BATCHES(*args, **more)
        return lambda seed, step: (
            step == 3 and os.kill(os.getpid(), signal.SIGINT), give(seed, step))[1]

    with monkeypatch.context() as patched:
        patched.setattr(data, "batches", batches)
        code, said, errors = command(
            results.main, "--parts", "ladder", "--stages", "lstm", "--out", tmp_path / "out",
            "--runs", tmp_path / "runs")
    assert code == 130 and "python -m book.results" in said.splitlines()[-1]
    assert not (tmp_path / "out/ladder.json").exists()
    once = tiny("--stages", "lstm")["stages"]["lstm"]
    assert begun == ["new_run", "new_run", "resume_run"]
    assert without_times(once) == without_times(never)


def without_times(row):
    curve = [[step, tokens, loss] for step, tokens, _, loss in row["curve"]]
    times = ("seconds", "tokens_per_second", "about")
    return {name: value for name, value in row.items() if name not in times} | {"curve": curve}


def test_bad_flags_are_refused(refusal):
    assert "Did you mean rnn" in refusal(results.main, "--stages", "rn")
    assert "Did you mean ladder" in refusal(results.main, "--parts", "lader")
    assert "--chek" in refusal(marks.main, "--chek")
    assert "gone.md" in refusal(marks.main, "gone.md")


def test_families_have_their_marks():
    """Every name that can be compared may stand in a mark."""
    for family in diff.families():
        assert marks.difference(family[0], family[1]).startswith("```")


def test_pictures_are_of_the_runs_that_are_there(tiny, tmp_path, monkeypatch, capsys):
    drawn = []
    pen = SimpleNamespace(
        draw=lambda stage, model, tokenizer, path: drawn.append((stage, type(model), path.name)),
        gradients=lambda models, tokenizer, path: drawn.append((*models, path.name)),
        ladder=lambda rows, path: drawn.append((*rows, path.name)))
    monkeypatch.setattr(book, "figures", pen, raising=False)
    monkeypatch.setattr(diagrams, "draw_all", lambda folder: drawn.append((folder.name,)))
    tiny("--stages", "bigram", "rnn")

    def draw(*stages):
        args = ["--parts", "pictures", "--stages", *stages]
        args += ["--out", tmp_path / "out", "--runs", tmp_path / "runs"]
        results.make(results.make_parser().parse_args(list(map(str, args))))

    draw("bigram", "mlp", "rnn")
    assert drawn == [("bigram", stage_class("bigram"), "bigram.svg"),
                     ("rnn", stage_class("rnn"), "rnn.svg"), ("out",)]
    assert f"mlp: no finished run in {tmp_path / 'runs' / 'mlp'}" in capsys.readouterr().out
    path = tmp_path / "out/ladder.json"
    ladder = json.loads(path.read_text("utf-8"))
    for stage in ("lstm", "gru"):  # what is in a run's folder counts, not its name
        shutil.copytree(tmp_path / "runs/rnn", tmp_path / "runs" / stage)
        ladder["stages"][stage] = ladder["stages"]["rnn"]
    put(path, ladder)
    drawn.clear()
    draw("bigram")
    draw("gru")
    assert drawn[2:] == [("gru", stage_class("rnn"), "gru.svg"),
                         ("rnn", "lstm", "gru", "gradients.svg"), ("out",)]
    ladder["stages"]["lstm"] = ladder["stages"]["lstm"] | {"val_loss": 1.0, "data": "names"}
    put(path, ladder)
    (tmp_path / "runs/gru/result.json").unlink()
    drawn.clear()
    capsys.readouterr()
    draw("rnn", "lstm", "gru")
    assert drawn == [("rnn", stage_class("rnn"), "rnn.svg"), ("lstm", "ladder.svg"), ("out",)]
    said = capsys.readouterr().out
    assert f"lstm: {tmp_path / 'runs/lstm'} is another run than that in ladder.json" in said
    assert f"gru: no finished run in {tmp_path / 'runs/gru'}" in said


# Where the package alone is installed


def test_without_a_clone_there_is_a_sentence(refusal, tmp_path, monkeypatch):
    monkeypatch.setattr(clone, "ROOT", tmp_path)
    for main in (marks.main, results.main, clone.missing(ImportError(name="jinja2"))):
        assert "this works in a clone of the project." in refusal(main)


def test_without_the_extra_packages_the_book_says_what_to_install(refusal):
    said = refusal(clone.missing(ImportError(name="jinja2")))
    assert "jinja2" in said and "pip install" in said


@pytest.mark.parametrize("module", ("marks", "results", "site"))
def test_an_installed_package_ends_in_a_sentence(tmp_path, module):
    """No more than what is packaged, and none of the packages of the book."""
    packaged = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    for name in packaged["packages"]:
        folder = name.replace(".", "/")
        (tmp_path / folder).mkdir(parents=True)
        for path in (ROOT / folder).iterdir():
            if path.is_file():
                shutil.copy(path, tmp_path / folder)
    for name in packaged["py-modules"]:
        shutil.copy(ROOT / f"{name}.py", tmp_path)
    code = ("import runpy, sys; sys.modules['jinja2'] = None; sys.argv = ['x']; "
            f"runpy.run_module('book.{module}', run_name='__main__', alter_sys=True)")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True,
                          text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "error: this works in a clone of the project.\n"


def test_the_table_names_the_book_where_it_can_be_made(monkeypatch, tmp_path):
    assert "read it all:   make book" in ladder.ladder(tmp_path, 200)
    for module in (diff, ladder):  # which read the stages' files in that folder too
        monkeypatch.setattr(module, "source", lambda name: '"""In it position t knows x."""\n')
    monkeypatch.setattr(diff, "ROOT", tmp_path)
    assert "make book" not in ladder.ladder(tmp_path, 200)
