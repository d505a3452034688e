"""data/: tokenizers, sets and their splits, batches, and `python -m data`."""

import hashlib
import io
import json
import math
import os
import subprocess
import sys
import urllib.error
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data import (
    ASSISTANT,
    END,
    SETS,
    SPECIALS,
    TURN,
    USER,
    CharTokenizer,
    Dataset,
    LineBatches,
    TextBatches,
    batches,
    characters,
    default_block_size,
    evaluation_batches,
    files,
    load,
    longest,
    names_with_origins,
    order,
    split_ids,
    tales,
    tokenizer_from_dict,
)

ROOT = Path(__file__).parents[1]
SPLITS = ("train", "val", "test")
# What every machine must get: items in each split, and the SHA-256 of them all.
NAMES = ([18169, 2274, 2386], "df009d844c1bf44ce49612f1e95c96996a430ac9fb8cf200e9355ca4f576ff49")
TALES = ([773, 101, 98], "1f262f462f24ac354e631d279779f7269bd58b3a843185b84a4d0d3f98cfebda")


def digest(dataset):
    text = json.dumps([dataset.splits[split] for split in SPLITS])
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def counts(dataset):
    return [len(dataset.splits[split]) for split in SPLITS]


def everything(dataset):
    return [item for split in SPLITS for item in dataset.splits[split]]


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return str(path)


def refusal(source, lines=False):
    """The one sentence with which load refuses a source."""
    with pytest.raises(ValueError) as caught:
        load(source, lines)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def command(*args, **env):
    return subprocess.run(
        [sys.executable, "-m", "data", *args], cwd=ROOT, env={**os.environ, **env},
        check=False, capture_output=True, encoding="utf-8", timeout=60,
    )


# Tokenizer


@pytest.mark.parametrize(
    "text",
    ["", "hello", "naïve Ωμέγα 東京", "👩‍👩‍👧 🇫🇷 é",
     "a\tb\nc\u2028d", "<|end|>"],
)
def test_text_comes_back_from_its_ids(text):
    tokenizer = CharTokenizer.train([text])
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert len(ids) == len(text) and all(i >= len(SPECIALS) for i in ids)
    assert tokenizer.vocab_size == len(SPECIALS) + len(set(text))


def test_ids_follow_the_sorted_characters_after_the_specials():
    tokenizer = CharTokenizer.train(["cab", "bad"])
    assert tokenizer.encode("abcd") == [4, 5, 6, 7]
    assert CharTokenizer("dcba").encode("abcd") == [7, 6, 5, 4]
    assert (END, USER, ASSISTANT, TURN) == (0, 1, 2, 3)


def test_special_and_unused_ids_give_no_text():
    tokenizer = CharTokenizer("ab")
    assert tokenizer.decode([END, 4, USER, ASSISTANT, 5, TURN, 6, 50_304, -1]) == "ab"
    assert tokenizer.decode(np.array([0, 4, 63])) == "a"


def test_unseen_characters_are_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'ß', 'é'.*abc"):
        CharTokenizer("abc").encode("aßéb")
    many = CharTokenizer("".join(map(chr, range(0x4E00, 0x6000))))
    with pytest.raises(ValueError) as caught:
        many.encode("a")
    assert len(str(caught.value)) < 500


def test_tokenizer_comes_back_from_plain_values():
    tokenizer = CharTokenizer.train(["é😀\n"])
    plain = json.loads(json.dumps(tokenizer.to_dict()))
    again = tokenizer_from_dict(plain)
    assert again.to_dict() == tokenizer.to_dict() and again.encode("😀") == tokenizer.encode("😀")
    for read in (tokenizer_from_dict, CharTokenizer.from_dict):
        with pytest.raises(ValueError, match="'word'"):
            read({"kind": "word"})


# Embedded sets


def test_embedded_names():
    rows = names_with_origins()
    names = [name for name, _ in rows]
    assert len(rows) == len(set(names)) == 22_829 and names == sorted(names)
    assert len({origin for _, origins in rows for origin in origins}) == 22
    assert all(origins == tuple(sorted(set(origins))) and origins for _, origins in rows)
    assert set("".join(names)) == set("abcdefghijklmnopqrstuvwxyz")


def test_embedded_tales():
    records = tales()
    assert len(records) == len({tale["title"] for tale in records}) == 972
    assert len({tale["topic"] for tale in records}) == 8
    assert {tale["lesson"] for tale in records} == {
        "kindness", "honesty", "courage", "patience", "sharing", "curiosity"}
    for tale in records:
        assert tale["text"].isascii() and tale["text"] == tale["text"].strip() and tale["prompt"]
        assert len(tale["questions"]) == 2
        for question in tale["questions"]:
            # An answer may open a sentence in the text, so only its case may differ.
            assert question["question"] and question["answer"].lower() in tale["text"].lower()


def test_splits_of_the_embedded_sets_are_fixed():
    names, stories = load("names"), load("tales")
    assert (names.kind, stories.kind) == ("lines", "text")
    assert names.separated and stories.separated
    assert (counts(names), digest(names)) == NAMES
    assert (counts(stories), digest(stories)) == TALES
    for dataset in (names, stories):
        assert len(set(everything(dataset))) == sum(counts(dataset))
    assert sorted(everything(names)) == [name for name, _ in names_with_origins()]


@pytest.mark.parametrize("hashseed", ["1", "2"])
def test_splits_do_not_depend_on_the_platform(hashseed, tmp_path):
    path = write(tmp_path / "x.txt", "\n".join(f"é{i}東" for i in range(200)))
    code = ("import sys; sys.path.insert(0, '.'); from data import load; "
            "import tests.test_data as t; print(t.digest(load('names')), t.digest(load('tales')),"
            " t.digest(load(sys.argv[1], lines=True)))")
    env = {"PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONHASHSEED": hashseed}
    done = subprocess.run([sys.executable, "-c", code, path], cwd=ROOT, env={**os.environ, **env},
                          capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == [NAMES[1], TALES[1], digest(load(path, lines=True))]


# Files and folders


def test_lines_are_split_80_10_10_with_duplicates_together_in_their_order(tmp_path):
    lines = [f"line {i % 1500}" for i in range(2000)]
    dataset = load(write(tmp_path / "own.txt", "\n".join(lines)), lines=True)
    assert dataset.name == "own" and dataset.kind == "lines" and dataset.separated
    parts = [set(dataset.splits[split]) for split in SPLITS]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    assert Counter(everything(dataset)) == Counter(lines)
    train = [line for line in lines if line in parts[0]]
    assert dataset.splits["train"] == train
    shares = [len(part) / 1500 for part in parts]
    assert np.allclose(shares, [0.8, 0.1, 0.1], atol=0.03)


@pytest.mark.parametrize("n", range(2, 11))
def test_few_lines_still_give_train_and_val(n, tmp_path):
    for trial in range(30):
        lines = [f"{trial} {i}" for i in range(n)]
        dataset = load(write(tmp_path / "few.txt", "\n".join(lines * 2)), lines=True)
        train, val, test = counts(dataset)
        assert train and val and (test or n == 2)
        assert sorted(everything(dataset)) == sorted(lines * 2)
        assert len(set(dataset.splits["train"]) | set(dataset.splits["val"])
                   | set(dataset.splits["test"])) == n


def test_text_is_split_by_position(tmp_path):
    text = " é\n" * 100
    dataset = load(write(tmp_path / "own.txt", text))
    assert dataset.kind == "text" and not dataset.separated
    assert dataset.splits == {"train": [text[:270]], "val": [text[270:]], "test": []}


def test_line_ends_and_the_byte_order_mark_are_no_characters(tmp_path):
    text = load(write(tmp_path / "t.txt", b"\xef\xbb\xbf" + b"one\r\ntwo\r\n" * 5))
    assert "".join(everything(text)) == "one\ntwo\n" * 5
    lines = load(write(tmp_path / "l.txt", b"\xef\xbb\xbf one\r\n\r\n two \r\n\t\r\n"), lines=True)
    assert sorted(everything(lines)) == ["one", "two"]


@pytest.mark.parametrize("raw, said", [
    (b"caf\xe9 au lait", "is not UTF-8 text (byte 0xe9 at offset 3)"),
    (b"\xef\xbb\xbfab\xff", "is not UTF-8 text (byte 0xff at offset 5)"),
    ("text".encode("utf-16"), "byte 0xff at offset 0"),
    (b"\x89PNG\r\n\x1a\n\0\0", "byte 0x89 at offset 0"),
    ("é\0".encode(), "NUL byte at offset 2"),
    (b"", "is empty"),
    (b" \r\n\t\n", "is empty"),
    (b"\xef\xbb\xbf\n", "is empty"),
    (b"too short", "9 characters, too few to split"),
])
def test_files_that_hold_no_text_are_refused(raw, said, tmp_path):
    path = write(tmp_path / "bad.txt", raw)
    message = refusal(path)
    assert said in message and path in message


@pytest.mark.parametrize("text", ["one", "one\n", "one\n\none \r\none"])
def test_one_distinct_line_is_refused(text, tmp_path):
    path = write(tmp_path / "one.txt", text)
    message = refusal(path, lines=True)
    assert "at least two different lines" in message and path in message


def test_a_name_that_is_neither_set_nor_path_is_refused(tmp_path):
    assert "Did you mean shakespeare?" in refusal("shakespear")
    assert all(name in refusal("qqq") and name in refusal("") for name in SETS)
    assert "absent.txt" in refusal(str(tmp_path / "absent.txt"))
    assert "train.txt" in refusal(str(tmp_path))
    assert "--lines" in refusal("tales", lines=True)


def test_a_set_goes_before_a_file_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "names", "x\ny\n")
    dataset = load("names")
    assert len(dataset.splits["train"]) > 1000 and "./names" in dataset.notes[0]
    assert len(everything(load("./names", lines=True))) == 2


def test_a_folder_holds_its_splits(tmp_path):
    for split in SPLITS:
        write(tmp_path / f"{split}.txt", f"{split} a\n{split} b\n")
    dataset = load(str(tmp_path), lines=True)
    assert dataset.splits == {split: [f"{split} a", f"{split} b"] for split in SPLITS}
    assert dataset.name == tmp_path.name and dataset.notes == ()
    dataset = load(str(tmp_path))
    assert dataset.splits["val"] == ["val a\nval b\n"] and not dataset.separated
    (tmp_path / "test.txt").unlink()
    assert load(str(tmp_path)).splits["test"] == []
    write(tmp_path / "val.txt", "train a\nnew\n")
    assert any("1 of the 2 distinct items of val" in note
               for note in load(str(tmp_path), lines=True).notes)


def test_a_slice_of_train_serves_as_val(tmp_path):
    lines = [f"{i % 800}" for i in range(1000)]
    write(tmp_path / "train.txt", "\n".join(lines))
    write(tmp_path / "test.txt", "t")
    dataset = load(str(tmp_path), lines=True)
    train, val = set(dataset.splits["train"]), set(dataset.splits["val"])
    assert not train & val and len(train | val) == 800 and 20 < len(val) < 60
    assert dataset.splits["test"] == ["t"] and "5% slice" in dataset.notes[0]
    write(tmp_path / "train.txt", "a\nb\nb\n")
    assert counts(load(str(tmp_path), lines=True))[1] > 0

    write(tmp_path / "test.txt", "two")
    write(tmp_path / "train.txt", "x" * 95 + "y" * 5)
    dataset = load(str(tmp_path))
    assert dataset.splits == {"train": ["x" * 95], "val": ["y" * 5], "test": ["two"]}
    write(tmp_path / "test.txt", "t")
    assert "one character" in refusal(str(tmp_path))


# Downloads


@pytest.fixture
def small_set(tmp_path, monkeypatch):
    """The bytes of a file that stands for usnames; nothing is cached and the network is off."""
    raw = b"ada\nbea\ncleo\n"
    monkeypatch.setitem(files.DOWNLOADS, "usnames", ("https://x", hashlib.sha256(raw).hexdigest()))
    monkeypatch.delenv("RUNGS_DATA", raising=False)
    monkeypatch.delenv("RUNGS_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def offline(url, timeout):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(files.urllib.request, "urlopen", offline)
    return raw


def test_downloads_come_first_from_rungs_data(small_set, tmp_path, monkeypatch):
    monkeypatch.setenv("RUNGS_DATA", str(tmp_path))
    write(tmp_path / "usnames.txt", small_set)
    dataset = load("usnames")
    assert dataset.kind == "lines" and sorted(everything(dataset)) == ["ada", "bea", "cleo"]
    write(tmp_path / "usnames.txt", small_set + b"x")
    message = refusal("usnames")
    assert "SHA-256" in message and str(tmp_path / "usnames.txt") in message


def test_without_network_both_ways_are_said(small_set, tmp_path, monkeypatch):
    monkeypatch.setenv("RUNGS_DATA", str(tmp_path))  # set, but the file is not there
    message = refusal("usnames")
    assert "RUNGS_DATA" in message and "usnames.txt" in message and "network" in message
    assert "--data=names" in message


def test_a_download_is_checked_and_cached(small_set, tmp_path, monkeypatch):
    served = [b"<html>log in</html>", small_set, small_set]
    monkeypatch.setattr(files.urllib.request, "urlopen",
                        lambda url, timeout: io.BytesIO(served.pop(0)))
    assert "SHA-256" in refusal("usnames")
    first = load("usnames")
    folder = tmp_path / "cache" / "rungs"
    assert [path.name for path in folder.iterdir()] == ["usnames.txt"] and len(served) == 1
    assert load("usnames") == first and len(served) == 1
    write(folder / "usnames.txt", b"damaged")
    assert load("usnames") == first and not served
    assert (folder / "usnames.txt").read_bytes() == small_set


# Batches


def test_order_is_a_permutation_that_its_arguments_decide():
    first = order(1, 0, 50).copy()
    assert sorted(first) == list(range(50))
    others = [order(1, epoch, 50) for epoch in range(1, 6)] + [order(2, 0, 50)]
    assert all((first != other).any() for other in others)
    assert (first == order(1, 0, 50)).all()


def lines_of(n):
    return [[4 + i] * (1 + i % 5) for i in range(n)]


@pytest.mark.parametrize("make", [
    lambda size: LineBatches(lines_of(23), 16, size),
    lambda size: TextBatches(np.arange(200), 7, size),
])
def test_batches_are_a_function_of_seed_and_step(make):
    one = make(6)
    there = [one(3, step) for step in range(12)]
    again = make(6)
    for step in reversed(range(12)):
        again(4, step + 5)  # a call in between that must leave no trace
        for a, b in zip(there[step], again(3, step)):
            assert a.dtype == b.dtype == np.int64 and (a == b).all()
    assert any((a != b).any() for a, b in zip(one(3, 0), one(4, 0)) if a.shape == b.shape)
    # Row r of step k is item k * batch size + r, whatever the batch size.
    singles = [make(1)(3, i) for i in range(72)]
    for step, (tokens, targets) in enumerate(there):
        for r in range(6):
            single_tokens, single_targets = singles[step * 6 + r]
            t = single_tokens.shape[1]
            assert (tokens[r, :t] == single_tokens[0]).all()
            assert (targets[r, :t] == single_targets[0]).all() and (targets[r, t:] == -1).all()


def test_an_epoch_sees_every_line_once():
    lines = lines_of(23)
    rows = LineBatches(lines, 16, 1)
    for epoch in range(3):
        seen = [rows(0, epoch * 23 + i)[0][0, 1:].tolist() for i in range(23)]
        assert sorted(seen) == sorted(lines)
    # A batch larger than the set goes through it more than once.
    tokens, _ = LineBatches(lines, 16, 46)(0, 0)
    assert sorted(Counter(tokens[:, 1]).values()) == [2] * 23


def test_lines_are_padded_and_cut():
    tokens, targets = LineBatches([[5, 6], [7], [8, 9, 10, 11, 12]], 4, 1).rows(np.array([0, 1, 2]))
    assert tokens.tolist() == [[END, 5, 6, END], [END, 7, END, END], [END, 8, 9, 10]]
    assert targets.tolist() == [[5, 6, END, -1], [7, END, -1, -1], [8, 9, 10, 11]]


def test_an_epoch_of_text_does_not_overlap_and_phases_differ():
    ids, block = np.arange(1000, 1100), 8
    make = TextBatches(ids, block, 1)
    starts = set()
    for epoch in range(20):
        seen = []
        for i in range(make.windows):
            tokens, targets = make(5, epoch * make.windows + i)
            assert (targets == tokens + 1).all() and tokens.shape == (1, block)
            seen.extend(tokens[0])
        assert len(set(seen)) == len(seen) >= 100 - 2 * block
        starts.add(min(seen))
    assert len(starts) > 4


@pytest.mark.parametrize("n", range(5, 14))
def test_short_texts_are_in_reach_to_the_end(n):
    make = TextBatches(np.arange(n), 4, 16)
    seen = np.concatenate([make(0, step)[1].ravel() for step in range(40)])
    assert set(seen) == set(range(1, n))


def test_a_text_shorter_than_the_block_is_refused():
    with pytest.raises(ValueError, match="lower the block size to at most 3"):
        TextBatches(np.arange(4), 4, 1)


def held(name, kind, val):
    dataset = Dataset(name, kind, {"train": ["ab"], "val": val, "test": []})
    return dataset, CharTokenizer.train(["ab"] + val)


def test_evaluation_of_lines_predicts_every_target_once():
    val = [chr(97 + i % 26) * (1 + i * 7 % 40) for i in range(200)]
    dataset, tokenizer = held("l", "lines", val)
    seen = []
    for tokens, targets in evaluation_batches(dataset, tokenizer, "val", 64, 256):
        assert tokens.size <= 256 and tokens.shape == targets.shape
        for row, target in zip(tokens, targets):
            target = target[target >= 0]
            assert row[0] == END and target[-1] == END
            assert (row[1:len(target)] == target[:-1]).all()
            seen.append(tokenizer.decode(target))
    assert sorted(seen) == sorted(val)
    counted = sum(len(line) + 1 for line in val)
    assert characters(dataset, "val") == characters(dataset, "val", 64) == counted
    cut = evaluation_batches(dataset, tokenizer, "val", 10)
    assert sum((y >= 0).sum() for _, y in cut) == characters(dataset, "val", 10) < counted
    assert evaluation_batches(dataset, tokenizer, "test", 10) == []
    assert characters(dataset, "test") == 0 and longest(dataset) == 40


@pytest.mark.parametrize("val", [["abcdefghijk"], ["abcde", "fgh", "ijkabc"], ["ab"]])
@pytest.mark.parametrize("block", [1, 3, 5, 10, 64])
def test_evaluation_of_text_predicts_all_but_the_first_token_once(val, block):
    dataset, tokenizer = held("t", "text", val)
    ids = split_ids(dataset, tokenizer, "val")
    batches = evaluation_batches(dataset, tokenizer, "val", block, 12)
    groups = [batch[:2] for batch in batches]
    assert all(len(batch) == 2 + dataset.separated for batch in batches)
    assert np.concatenate([x.ravel() for x, _ in groups]).tolist() == ids[:-1].tolist()
    assert np.concatenate([y.ravel() for _, y in groups]).tolist() == ids[1:].tolist()
    assert all(x.shape[1] == block for x, _ in groups[:-1]) and groups[-1][0].shape[1] <= block
    assert all(x.size <= max(12, block) for x, _ in groups)
    assert characters(dataset, "val") == len(ids) - 1


def test_documents_begin_with_end_where_there_is_more_than_one():
    dataset, tokenizer = held("t", "text", ["ab", "b"])
    assert split_ids(dataset, tokenizer, "val").tolist() == [END, 4, 5, END, 5]
    assert split_ids(dataset, tokenizer, "train").tolist() == [END, 4, 5]
    dataset, tokenizer = held("t", "text", ["ab"])
    assert split_ids(dataset, tokenizer, "val").tolist() == [4, 5]


def test_batches_of_a_set():
    dataset = load("names")
    tokenizer = CharTokenizer.train(everything(dataset))
    make = batches(dataset, tokenizer, block_size=16, batch_size=32)
    tokens, targets = make(1, 0)
    assert tokens.shape == targets.shape == (32, tokens.shape[1]) and (tokens[:, 0] == END).all()
    assert {tokenizer.decode(row) for row in tokens} <= set(dataset.splits["train"])
    assert default_block_size(dataset) == longest(dataset) + 1 == 16
    stories = load("tales")
    tokenizer = CharTokenizer.train(everything(stories))
    make = batches(stories, tokenizer, 64, 200)
    tokens, targets, segments = make(1, 0)
    assert tokens.shape == (200, 64) and (tokens[:, 1:] == targets[:, :-1]).all()
    # a row goes to the next segment where a tale begins, and nowhere else
    begins = tokens[:, 1:] == END
    assert begins.any() and (np.diff(segments) == begins).all()
    assert default_block_size(stories) == 64


# python -m data


def test_the_command_shows_what_a_text_holds(tmp_path):
    done = command()
    assert done.returncode == 0 and [row.split()[0] for row in done.stdout.splitlines()] == [*SETS]
    done = command("names", "--num=1")
    for fact in ("22,829", "18,169 lines", "max 15", f"{math.log(30):.4f} nats", "block size  16"):
        assert fact in done.stdout
    path = write(tmp_path / "list.txt", "é\nbob\ncléo\nあ\n" * 10)
    done = command(path, PYTHONUTF8="0", LC_ALL="C", PYTHONCOERCECLOCALE="0")
    assert done.returncode == 0 and "--lines" in done.stdout and done.stderr == ""


@pytest.mark.parametrize("args, said", [
    (["nmaes"], "Did you mean names?"),
    (["names", "--line"], "--lines"),
    (["names", "--num=many"], "--num"),
    (["names", "--num=-1"], "--num"),
])
def test_the_command_refuses_in_one_sentence(args, said):
    done = command(*args)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert said in done.stderr


def test_batches_of_one_shape_differ_from_the_others_in_padding_alone():
    lines = lines_of(23)
    plain, padded = LineBatches(lines, 16, 4), LineBatches(lines, 16, 4, one_shape=True)
    longest = max(map(len, lines)) + 1
    for step in range(6):
        (tokens, targets), (same, same_targets) = plain(0, step), padded(0, step)
        T = tokens.shape[1]
        assert same.shape == (4, longest)
        assert (same[:, :T] == tokens).all() and (same_targets[:, :T] == targets).all()
        assert (same_targets[:, T:] == -1).all()
