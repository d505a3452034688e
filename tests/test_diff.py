"""`python -m makemore`, with and without `diff`; and that the stage files keep diffs short."""

import ast
import difflib
import json
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from data import CharTokenizer, cli, default_block_size, load
from makemore import STAGES, __main__, build, diff, sizes, stage_class

ROOT = Path(__file__).parents[1]
NEIGHBOURS = list(pairwise(STAGES))
LEARNED = {stage: diff.parameters(stage) for stage in STAGES}
RESULT = {
    "model": "rnn", "data": "names", "parameters": 1234567, "steps": 3,
    "train_loss": 1.5, "val_loss": 1.75, "test_loss": 2.25,
}


@pytest.fixture
def command(monkeypatch, capsys):
    """Run the command line in this process: its exit code, stdout and stderr."""
    monkeypatch.delenv("NO_COLOR", raising=False)

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["makemore", *args])
        with pytest.raises(SystemExit) as end:
            cli.run(__main__.main)
        return end.value.code, *capsys.readouterr()

    return call


def start(*args):
    """The command line in a process of its own, in the repository's root."""
    return subprocess.Popen(
        [sys.executable, "-m", "makemore", *args], cwd=ROOT, encoding="utf-8",
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )


def write_result(root, name, minute=0, **changes):
    """A run folder with a result.json written in that minute."""
    path = root / name / "result.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(RESULT | changes), "utf-8")
    os.utime(path, (60 * minute, 60 * minute))


def row(text, stage):
    """The row of the ladder that begins with the stage, in columns."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"{stage} ")]
    return re.split(r"  +", line)


def lines_of(stage):
    return diff.source(stage).splitlines()


# The ladder


def test_the_ladder_lists_the_seven_stages_in_order(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)
    code, out, err = command()
    assert (code, err) == (0, "")
    rows = [re.split(r"  +", line) for line in out.splitlines()]
    assert rows[0][:2] == ["stage", "position t knows"]
    assert [cells[0] for cells in rows[1:8]] == list(STAGES) and len(STAGES) == 7
    for cells, stage in zip(rows[1:8], STAGES, strict=True):
        count = sum(p.numel() for p in build(stage, 30, 16).parameters())
        lines = str(diff.code_lines(diff.source(stage))), str(len(lines_of(stage)))
        assert cells[2:] == [f"{count:,}", *lines, "-", "-", "-"]
        assert f"position t knows {cells[1]}." in lines_of(stage)[0]
    assert "python train.py --model=bigram" in out and "python -m makemore diff" in out


def test_parameters_are_those_on_the_embedded_names():
    names = load("names")
    tokenizer = CharTokenizer.train(text for split in names.splits.values() for text in split)
    assert (tokenizer.vocab_size, default_block_size(names)) == (diff.TOKENS, diff.BLOCK_SIZE)
    assert LEARNED["bigram"] == 30 * 30
    width, layers = sizes("rnn")["width"], sizes("rnn")["layers"]
    assert LEARNED["rnn"] == 30 * width + layers * (2 * width + 1) * width + 30 * (width + 1)


def test_the_ladder_shows_the_newest_result_of_each_stage(tmp_path):
    write_result(tmp_path, "rnn-b", minute=1, test_loss=9.0)
    write_result(tmp_path, "rnn-a", minute=2)
    write_result(tmp_path, "gru-tales", model="gru", data="tales", test_loss=None)
    write_result(tmp_path, "mlp-own", model="mlp", data=str(Path("some") / "own.txt"))
    write_result(tmp_path, "gpt-tales", model="gpt")
    (tmp_path / "lstm-names").mkdir()  # still training
    out = __main__.ladder(tmp_path, 1000)
    assert row(out, "rnn")[-3:] == ["2.2500", "names", str(tmp_path / "rnn-a")]
    assert row(out, "rnn")[2] == "1,234,567"
    assert row(out, "gru")[-3:] == ["1.7500 (val)", "tales", str(tmp_path / "gru-tales")]
    assert row(out, "mlp")[-2] == "own.txt"
    assert row(out, "lstm")[-3:] == ["-", "-", "-"] and "gpt" not in out
    assert "--model=bigram" in out and "note" not in out


@pytest.mark.parametrize("broken", [
    "", "{", "[]", "null", "3", "{}", '{"model": "rnn"}', b"\xff\xfe",
    json.dumps(RESULT | {"test_loss": "low"}), json.dumps(RESULT | {"parameters": None}),
    json.dumps(RESULT | {"test_loss": None, "val_loss": None}), json.dumps(RESULT | {"data": 3}),
])
def test_a_broken_result_is_named_and_left_out(tmp_path, broken):
    write_result(tmp_path, "rnn-names")
    path = tmp_path / "rnn-names-2" / "result.json"
    path.parent.mkdir()
    path.write_bytes(broken if isinstance(broken, bytes) else broken.encode())
    out = __main__.ladder(tmp_path, 1000)
    assert row(out, "rnn")[-1] == str(tmp_path / "rnn-names")
    assert f"note: {path} is not a whole result and is left out" in out


def test_runs_names_another_folder(command, monkeypatch, tmp_path):
    write_result(tmp_path / "other", "x")
    monkeypatch.chdir(tmp_path)
    assert row(command("--runs=other")[1], "rnn")[-1] == str(Path("other") / "x")
    assert command("--runs=none") == (2, "", "error: there is no folder none.\n")


def test_a_narrow_terminal_has_the_ideas_beneath(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    table = command()[1].split("\n\n")[0]
    assert f"\n    {diff.idea('lstm')}\n" in table and max(map(len, table.splitlines())) <= 80


def test_lines_of_code_are_neither_blank_nor_comment_nor_docstring():
    text = '''"""Of the module.

Two."""

# comment
import os  # one


class A:
    """Of the class."""

    def f(self):
        """Of the function,

        long.
        """
        # comment
        return """no
docstring, with # no comment

in it"""

    x = (
        1,  # in brackets

        # comment
        2,
    )
'''
    code = ["import", "class", "def", *["return"] * 4, "x = (", "1", "2", ")"]
    assert diff.code_lines(text) == len(code)
    assert diff.code_lines("") == 0 and diff.code_lines("x = 1") == 1


# The diff


@pytest.mark.parametrize("context", [0, 3, 1000])
@pytest.mark.parametrize("pair", NEIGHBOURS)
def test_a_diff_is_that_of_diff_u(pair, context):
    a, b = map(lines_of, pair)
    shown = list(diff.compare(*pair, context))
    expected = difflib.unified_diff(a, b, n=context, lineterm="")
    assert shown[2:-1] == list(expected)[2:]
    for line, sign, stage in zip(shown, ("---", "+++"), pair, strict=False):
        assert line == f"{sign} makemore/{stage}.py\tposition t knows {diff.idea(stage)}"


@pytest.mark.parametrize("pair", NEIGHBOURS)
def test_counts_add_up(pair):
    a, b = map(lines_of, pair)
    added, removed = diff.counts(a, b)
    whole = list(diff.compare(*pair, context=1000))[3:-1]
    assert [line[1:] for line in whole if line[0] != "+"] == a
    assert [line[1:] for line in whole if line[0] != "-"] == b
    assert sum(line[0] == "+" for line in whole) == added
    assert sum(line[0] == "-" for line in whole) == removed
    *_, summary = diff.compare(*pair)
    numbers = [int(n.replace(",", "")) for n in re.findall(r"[+-]?\d[\d,]*", summary)]
    code = [diff.code_lines(diff.source(stage)) for stage in pair]
    before, after = (LEARNED[stage] for stage in pair)
    assert numbers == [added, removed, *code, before, after, after - before]
    assert summary.startswith(f"{pair[0]} -> {pair[1]}: {added} lines added, {removed} removed; ")


def test_the_last_rung_has_a_folder_of_its_own(command):
    code, out, err = command("diff", "transformer", "gpt")
    assert (code, err) == (0, "") and command("diff", "gpt")[1] == out
    heads = [line.split("\t") for line in out.splitlines()[:2]]
    assert [head[0] for head in heads] == ["--- makemore/transformer.py", "+++ nanogpt/gpt.py"]
    assert heads[1][1] == f"position t knows {diff.idea('gpt')}" and len(diff.idea("gpt")) > 20
    assert "parameters (" not in out.splitlines()[-1]


def test_no_stage_alone_is_all_neighbours_and_one_is_from_the_stage_before(command):
    code, out, err = command("diff")
    assert (code, err) == (0, "")
    heads = re.findall(r"^(?:---|\+\+\+) makemore/(\w+)\.py\t", out, re.MULTILINE)
    assert heads == [stage for pair in NEIGHBOURS for stage in pair]
    assert command("diff", "lstm") == command("diff", "rnn", "lstm")
    assert command("diff", "gru", "bigram")[1].startswith("--- makemore/gru.py\t")


@pytest.mark.parametrize("args, sentence", [
    (["lstn"], "there is no stage lstn. Did you mean lstm? The stages are bigram, "),
    (["rnn", "transfomer"], "there is no stage transfomer. Did you mean transformer? "),
    (["../model"], "there is no stage ../model. The stages are bigram, "),
    (["bigram"], "bigram is the first stage, so there is none before it."),
    (["rnn", "rnn"], "rnn and rnn are one stage, so nothing changes."),
    (["adm"], "there is no stage adm. Did you mean adam? "),
    (["sgd"], "sgd is the first of its kind."),
    (["adam", "relu"], "adam and relu are of different kinds; adam can be compared with sgd, "),
    (["rnn", "adam"], "rnn and adam are of different kinds; rnn can be compared with bigram, "),
    (["--backend"], "--backend compares the two versions of one stage; name bigram or mlp."),
    (["--backend", "rnn", "gru"], "--backend compares the two versions of one stage; "),
    (["--backend", "gru"], "the stage gru has no numpy version; these have: bigram, mlp."),
    (["--backend", "adam"], "there is no stage adam. "),
    (["rnn", "gru", "lstm"], "diff compares two stages, not 3."),
    (["rnn", "gru", "--context=-1"], "--context must be at least 0, not -1."),
    (["rnn", "gru", "--context=x"], "argument --context: invalid int value: 'x'"),
    (["rnn", "gru", "--color=alway"], "argument --color: invalid choice: 'alway'"),
])
def test_a_wrong_word_ends_in_a_sentence(command, args, sentence):
    code, out, err = command("diff", *args)
    assert (code, out) == (2, "") and err.startswith(f"error: {sentence}")


def test_the_command_line_in_a_process_of_its_own():
    out, err = start("diff", "rnn", "lstm").communicate(timeout=60)
    assert (out.splitlines(), err) == (list(diff.compare("rnn", "lstm")), "")


def test_a_reader_that_goes_away_is_no_error():
    process = start("diff", "--context=1000")
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait(60) == 141
    process.stderr.close()


# The pieces


PIECES = [pair for family in diff.FAMILIES.values() for pair in pairwise(family)]


@pytest.mark.parametrize("pair", PIECES, ids="-".join)
def test_a_diff_of_pieces_is_that_of_their_definitions(pair):
    a, b = (diff.source(name).splitlines() for name in pair)
    whole = list(diff.compare(*pair, context=1000))[3:-1]
    assert [line[1:] for line in whole if line[0] != "+"] == a
    assert [line[1:] for line in whole if line[0] != "-"] == b
    assert re.match(r"(class|def) \w+", b[0])


def test_no_name_stands_twice():
    names = [name for family in diff.families() for name in family]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("pair", list(pairwise(diff.FAMILIES["optimizers"])), ids="-".join)
def test_an_optimizer_is_a_few_lines_from_the_one_before(pair):
    """In code: the words of the docstring and the name of the class always differ."""
    def code(name):
        tree = ast.parse(diff.source(name))
        tree.body[0].body[0], tree.body[0].name = ast.Pass(), "Piece"
        return ast.unparse(tree).splitlines()

    added, removed = diff.counts(*map(code, pair))
    assert added <= 8 and removed <= 11


def test_pieces_on_the_command_line(command):
    code, out, err = command("diff", "rmsprop", "adam")
    assert (code, err) == (0, "")
    assert out.startswith("--- makemore/without_torch/optimizers.py\trmsprop: ")
    assert out.splitlines()[-1].startswith("rmsprop -> adam: ") and "parameters (" not in out
    assert command("diff", "adam")[1] == out


@pytest.mark.parametrize("stage", ["bigram", "mlp"])
@pytest.mark.parametrize("width", [60, 231])
def test_numpy_beside_pytorch(stage, width):
    head, *lines, summary = diff.beside(stage, width)
    room = (width - 3) // 2
    left = [line[:room].rstrip() for line in lines]
    right = [line[room + 3:] for line in lines]
    signs = [line[room + 1:room + 2] for line in lines]
    for side, backend, other in ((left, "numpy", ">"), (right, "torch", "<")):
        shown = "".join(part for part, sign in zip(side, signs) if sign != other)
        text = diff.source(stage, backend)
        assert re.sub(r"\s", "", shown) == re.sub(r"\s", "", text)
    assert head.split() == [f"makemore/without_torch/{stage}.py", f"makemore/{stage}.py"]
    assert summary.startswith(f"{stage}: ")


def test_backends_on_the_command_line(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    code, out, err = command("diff", "mlp", "--backend")
    assert (code, err) == (0, "") and out.splitlines() == list(diff.beside("mlp", 120))


# Colours


def test_colours_only_when_asked_or_on_a_terminal(command, monkeypatch):
    plain, coloured = (command("diff", "gru", f"--color={when}") for when in ("never", "always"))
    assert "\033" not in plain[1] and "\033[31m-" in coloured[1] and "\033[32m+" in coloured[1]
    assert re.sub(r"\033\[\d*m", "", coloured[1]) == plain[1]
    assert command("diff", "gru") == plain
    monkeypatch.setattr(__main__, "colored", lambda when, stream: when == "auto")
    assert command("diff", "gru") == coloured


@pytest.mark.parametrize("when, terminal, no_color, expected", [
    ("auto", True, None, True), ("auto", True, "", True), ("auto", True, "1", False),
    ("auto", False, None, False), ("always", False, "1", True), ("never", True, None, False),
])
def test_when_to_colour(monkeypatch, when, terminal, no_color, expected):
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color is not None:
        monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    assert __main__.colored(when, sys.stdout) is expected


def test_changed_words_stand_out():
    assert diff.mark("h = 4 * width", ["h = width", "other"]) == "h = \033[7m4 * \033[27mwidth"
    assert diff.mark("h = width", ["h = 4 * width"]) == "h = width"
    assert diff.mark("all new", ["h = width"]) == "all new" == diff.mark("all new", [])


# The stage files


@pytest.mark.parametrize("pair", NEIGHBOURS)
def test_a_step_up_the_ladder_is_short(pair):
    added, _ = diff.counts(*map(lines_of, pair))
    assert added <= (95 if pair == ("gru", "transformer") else 60)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_short(stage):
    assert len(lines_of(stage)) <= 130


@pytest.mark.parametrize("path", sorted((ROOT / "makemore").glob("*.py")), ids=lambda p: p.name)
def test_no_line_is_longer_than_100(path):
    lines = enumerate(path.read_text("utf-8").splitlines(), start=1)
    assert [f"{path.name}:{number}" for number, line in lines if len(line) > 100] == []


def kind(node, model):
    """What a statement at the top of a stage file is."""
    if isinstance(node, ast.ClassDef):
        return "model" if node.name == model else "layer"
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return "docstring"
    kinds = {ast.Import: "import", ast.ImportFrom: "import", ast.FunctionDef: "function"}
    return kinds.get(type(node), f"line {node.lineno}")


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_file_has_the_same_layout(stage):
    tree = ast.parse(diff.source(stage))
    kinds = [kind(node, STAGES[stage]) for node in tree.body]
    order = ["docstring", "import", "function", "layer", "model"]
    assert set(kinds) <= set(order) and kinds == sorted(kinds, key=order.index)
    assert (kinds[0], kinds[-1], kinds.count("model")) == ("docstring", "model", 1)
    assert ("layer" in kinds) == (stage != "bigram")
    imports = [ast.unparse(node) for node in tree.body if "Import" in type(node).__name__]
    assert imports[-1] == "from .model import LanguageModel" and "from torch import nn" in imports
    assert stage_class(stage).__module__ == f"makemore.{stage}"
    label = re.fullmatch(r"(\w+): position t knows [^.]+\.", lines_of(stage)[0].strip('"'))
    assert label and label[1].lower() == stage


@pytest.mark.parametrize("stage", STAGES)
def test_every_class_and_method_has_the_same_shape(stage):
    *layers, model = [node for node in ast.parse(diff.source(stage)).body
                      if isinstance(node, ast.ClassDef)]
    for node in [*layers, model]:
        methods = {f.name: f.args for f in node.body if isinstance(f, ast.FunctionDef)}
        assert ast.get_docstring(node) and next(iter(methods)) == "__init__"
        names = {name: [arg.arg for arg in args.args] for name, args in methods.items()}
        if node is model:
            assert names["__init__"][:3] == ["self", "vocab_size", "block_size"]
            assert names.keys() <= {"__init__", "mix"}
            assert ast.unparse(node.bases) == "LanguageModel"
        else:
            assert list(names) == ["__init__", "forward"]
            # the transformer makes of the positions, once for all blocks, what they may see
            middle = "view" if stage == "transformer" else "positions"
            assert names["forward"] == ["self", "x", middle, "memory"]
            assert ast.unparse(node.bases) == "nn.Module"


@pytest.mark.parametrize("stage", STAGES)
def test_layers_are_of_the_stage_file(stage):
    layers = build(stage, 30, 16).layers
    assert {type(layer).__module__ for layer in layers} <= {f"makemore.{stage}"}
    assert len(layers) == sizes(stage).get("layers", int(stage != "bigram"))
