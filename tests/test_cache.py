"""Texts too large for memory: documents in files, splits, pieces, and the cache of their tokens."""

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from data import (
    END,
    BytePairTokenizer,
    CharTokenizer,
    Dataset,
    GPT2Tokenizer,
    Streamed,
    batches,
    cache,
    characters,
    corpus,
    evaluation_batches,
    extent,
    files,
    load,
    longest,
    runs,
    size,
    split_ids,
    tales,
    tokens_of,
)
from data.__main__ import describe

ROOT = Path(__file__).parents[1]
SPLITS = ("train", "val", "test")
FAMILY = "👩\u200d👩\u200d👧"
MIXED = (f"It's  one\r\ntwo \x1c three!\u3000four {FAMILY}\n\n\n  we'll\tsee 東京都東京都 "
         "12 3\r\r\nnaïve.\x85 'd've\xa0x  \u2028y z" + "w" * 40 + " \n" * 30 + "end ")
PROSE = "\n".join(tale["text"] for tale in tales()[:12]) + MIXED
PLAIN = PROSE.replace("\r", "")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """A cache of its own for every test, and two threads."""
    monkeypatch.setenv("RUNGS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "cores", lambda: 2)


@pytest.fixture
def limits(monkeypatch):
    """limits(large, held_out, block): the constants of a text of any size for one of this size."""
    def set_to(large=0, held_out=10**6, block=1000):
        monkeypatch.setattr(corpus, "LARGE", large)
        monkeypatch.setattr(corpus, "HELD_OUT", held_out)
        monkeypatch.setattr(files, "BLOCK", block)

    return set_to


@pytest.fixture(scope="module")
def own():
    """Byte pairs of some tales."""
    return BytePairTokenizer.train((tale["text"] for tale in tales()[:60]), 500)


@pytest.fixture(scope="module")
def gpt2():
    """GPT-2's, from a file of this machine: tests use no network."""
    def offline(name):
        raise ValueError(f"neither RUNGS_DATA nor a cache has {name}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "download", offline)
        try:
            return GPT2Tokenizer()
        except ValueError as error:
            pytest.skip(str(error))


@pytest.fixture(params=["char", "own", "gpt2"])
def tokenizer(request):
    """One of each kind."""
    if request.param != "char":
        return request.getfixturevalue(request.param)
    return CharTokenizer.train([PROSE, *(tale["text"] for tale in tales())])


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return str(path)


def as_jsonl(texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


def some_documents(n):
    """Distinct texts of tens to hundreds of characters."""
    words = " ".join(tale["text"] for tale in tales()[:40]).split(" ")
    return [f"{i} é " + " ".join(words[7 * i:7 * i + 5 + 11 * (i % 9)]) for i in range(n)]


def documents_of(part):
    """The documents of a split, joined from their pieces."""
    if not isinstance(part, Streamed):
        return part
    found = []
    for begins, text in part.pieces():
        found += [text] if begins else []
        if not begins:
            found[-1] += text
    return found


def plain(source):
    """The text of a source, or texts of documents, whole."""
    return {split: documents_of(part) for split, part in load(source).splits.items()}


def refusal(call, *args):
    """The one sentence with which a call refuses its arguments."""
    with pytest.raises(ValueError) as caught:
        call(*args)
    assert "\n" not in str(caught.value) and 20 < len(str(caught.value)) < 400
    return str(caught.value)


def entries(tmp_path):
    """What there is in the cache, temporary names included."""
    folder = tmp_path / "cache" / "tokens"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


# Reading in blocks


@pytest.mark.parametrize("block", [1, 2, 3, 5, 64])
def test_text_in_blocks_is_the_text_of_the_whole(block):
    for text in (MIXED, "\ufeff" + MIXED, "\ufeff\ufeffa\r", "\r\r\n\r\n\n\r", "🙂\r\n" * 9):
        raw = text.encode("utf-8")
        blocks = (raw[i:i + block] for i in range(0, len(raw), block))
        chunks = list(files.decoded(blocks, "x"))
        assert all(chunks)
        assert "".join(chunks) == text.removeprefix("\ufeff").replace("\r\n", "\n")


@pytest.mark.parametrize("block", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("raw, said", [
    (b"caf\xe9 au lait" * 3, "(byte 0xe9 at offset 3)"),
    (b"\xef\xbb\xbfab\xff" + b"x" * 9, "(byte 0xff at offset 5)"),
    ("0123456🙂".encode()[:-1], "(byte 0xf0 at offset 7)"),
    ("0123456é🙂".encode() + b"\x80abcde", "(byte 0x80 at offset 13)"),
    ("é🙂\0 and on".encode(), "NUL byte at offset 6"),
    (b" \r\n\t\n\r\n" * 9, "is empty"),
])
def test_broken_text_is_refused_wherever_blocks_are_cut(block, raw, said, tmp_path, limits):
    path = write(tmp_path / "bad.txt", raw)
    limits(large=0, block=block)
    streamed = refusal(load, path)
    assert said in streamed and path in streamed
    limits(large=10**9)
    assert refusal(load, path) == streamed


# Pieces


@pytest.mark.parametrize("block", [1, 3, 50, 4000])
def test_no_tokenizer_can_tell_where_pieces_are_cut(block, tokenizer, tmp_path, limits):
    path = write(tmp_path / "text.txt", PROSE * 2)
    whole = plain(path)
    limits(block=block)
    dataset = load(path)
    for split in ("train", "val"):
        part = dataset.splits[split]
        pieces = list(part)
        assert isinstance(part, Streamed) and (len(pieces) > 2 or block == 4000 and split == "val")
        assert "".join(pieces) == whole[split][0] and all(pieces)
        assert [begins for begins, _ in part.pieces()] == [True] + [False] * (len(pieces) - 1)
        assert max(map(len, pieces)) < 2 * block + 100
        ids = split_ids(dataset, tokenizer, split)
        assert ids.tolist() == tokenizer.encode(whole[split][0])


def test_a_text_without_a_place_to_cut_is_one_piece(tmp_path, limits):
    limits(block=10)
    dataset = load(write(tmp_path / "text.txt", "東京都" * 100 + "\t" * 50))
    assert [len(piece) for piece in dataset.splits["train"]] == [315]


def test_streamed_texts_train_the_same_tokenizers(tmp_path, limits):
    path = write(tmp_path / "text.txt", PROSE)
    whole = plain(path)["train"]
    limits(block=100)
    part = load(path).splits["train"]
    assert CharTokenizer.train(part).characters == "".join(sorted(set(whole[0])))
    assert BytePairTokenizer.train(part, 400).merges == BytePairTokenizer.train(whole, 400).merges


@pytest.mark.parametrize("kind", ["own", "gpt2"])
def test_arrays_of_ids_are_those_of_encode(kind, request):
    tokenizer = request.getfixturevalue(kind)
    texts = ["", PROSE, "a\ud800b", "<|end|>", "x\n" * 3, "<|endoftext|> <|end|><|user|>"]
    for text in [*texts, *map("a{} b".format, ["\n" * 250_000, "\t" * 250_000])]:
        ids = tokenizer.encode_array(text)
        assert ids.dtype == np.uint16 and ids.tolist() == tokenizer.encode(text)


def test_arrays_of_ids_of_characters():
    tokenizer = CharTokenizer("bé\ud800🙂a")
    assert tokenizer.encode_array("ab🙂\ud800é").tolist() == tokenizer.encode("ab🙂\ud800é")
    assert tokenizer.encode_array("").dtype == np.uint16
    for text in ("abc", "🙃", "\U0010ffff", "\0"):
        with pytest.raises(ValueError) as slow:
            tokenizer.encode(text)
        assert refusal(tokenizer.encode_array, text) == str(slow.value)
    assert refusal(CharTokenizer("").encode_array, "a")


# Sources and splits


@pytest.mark.parametrize("layout", ["jsonl", "folder"])
def test_documents_are_split_alike_in_memory_and_streamed(layout, tmp_path, limits, own):
    documents = some_documents(400) + some_documents(30) + ["long " + PLAIN]
    if layout == "jsonl":
        path = write(tmp_path / "x.jsonl", as_jsonl(documents))
    else:
        path = str(tmp_path / "x")
        for i, text in enumerate(documents):
            write(tmp_path / "x" / f"{i % 3}" / f"{i:03}.txt", text)
    small = load(path)
    assert small.kind == "text" and small.separated and small.name == "x"
    assert sorted(t for part in small.splits.values() for t in part) == sorted(documents)
    assert all(not set(small.splits[a]) & set(small.splits[b])
               for a, b in (("train", "val"), ("train", "test"), ("val", "test")))
    limits(held_out=20_000, block=500)
    large = load(path)
    assert large.separated and (large.kind, large.name) == ("text", "x")
    assert longest(large) == longest(small) == len(documents[-1])
    for split in SPLITS:
        part = large.splits[split]
        assert documents_of(part) == small.splits[split]
        assert size(part) == size(small.splits[split]) and part.documents > 20
        assert split_ids(large, own, split).tolist() == split_ids(small, own, split).tolist()
        assert characters(large, split) == characters(small, split)


def test_little_of_a_large_corpus_is_held_out_and_equal_documents_stay_together(tmp_path, limits):
    documents = some_documents(1000)
    path = write(tmp_path / "x.jsonl", as_jsonl(documents * 2))
    limits(held_out=5000)
    dataset = load(path)
    parts = plain(path)
    assert all(3000 < size(dataset.splits[split])[1] <= 5000 for split in ("val", "test"))
    assert size(dataset.splits["train"]) == size(parts["train"])
    assert sum(len(set(parts[split])) for split in SPLITS) == len(set(documents))
    assert "5,000" in dataset.notes[0]


@pytest.mark.parametrize("n", [1, 4])
def test_large_documents_are_split_by_position(n, tmp_path, limits):
    documents = [f"é{i}" + PLAIN for i in range(n)]
    path = write(tmp_path / "x.jsonl", as_jsonl(documents))
    limits(held_out=1000)
    dataset, parts = load(path), plain(path)
    assert parts["val"] == ["".join(documents)[-1000:]] and parts["test"] == []
    assert parts["train"] == documents[:-1] + [documents[-1][:-1000]]
    assert all(size(dataset.splits[split]) == size(parts[split]) for split in SPLITS)
    assert dataset.separated == (n > 1) and "from the end" in dataset.notes[0]
    # val may hold several documents, and begin just with one
    for held_out in range(len(documents[-1]) - 2, len(documents[-1]) + 4):
        write(tmp_path / "x.jsonl", as_jsonl([*documents, *documents]))
        limits(held_out=held_out)
        monkey = load(path)
        assert all(size(monkey.splits[s]) == size(documents_of(monkey.splits[s])) for s in SPLITS)


def test_a_folder_gives_its_texts_by_their_path(tmp_path, limits):
    folder = tmp_path / "corpus"
    write(folder / "b.txt", "b one\n")
    write(folder / "a" / "z.JSONL", b"\xef\xbb\xbf" + as_jsonl(["z1", "z\r\n2"]).encode())
    write(folder / "a" / "y.txt", b"\xef\xbb\xbfy\r\n")
    write(folder / "a" / "blank.txt", " \n")
    write(folder / ".hidden.txt", b"\xff")
    write(folder / ".git" / "x.txt", b"\xff")
    write(folder / "a" / "image.png", b"\xff")
    for large in (10**9, 0):
        limits(large=large, block=2)
        dataset = load(str(folder))
        parts = plain(str(folder))
        if large:
            assert sorted(sum(parts.values(), [])) == ["b one\n", "y\n", "z\n2", "z1"]
        else:  # by position, so that the order shows
            assert "".join(parts["train"] + parts["val"]) == "y\nz1z\n2b one\n"
        assert dataset.splits["val"] and dataset.separated and dataset.name == "corpus"
        assert dataset.notes[0] == "documents without any text are left out: 1"
    write(tmp_path / "one" / "only.txt", "not parted " * 10)
    limits(large=10**9)
    assert not load(str(tmp_path / "one")).separated


@pytest.mark.parametrize("large", [0, 10**9])
def test_a_folder_of_splits_takes_both_formats(large, tmp_path, limits):
    documents = some_documents(200)
    write(tmp_path / "train.jsonl", as_jsonl(documents))
    write(tmp_path / "test.txt", "a test\r\n")
    write(tmp_path / "notes.txt", "no part of it")
    limits(large=large, held_out=5000)
    dataset, parts = load(str(tmp_path)), plain(str(tmp_path))
    assert sorted(parts["train"] + parts["val"]) == sorted(documents) and len(parts["val"]) > 3
    assert parts["test"] == ["a test\n"] and dataset.separated
    assert "slice of train.jsonl, for there is no val.jsonl" in dataset.notes[-1]
    write(tmp_path / "val.txt", "a val\n")
    assert plain(str(tmp_path)) == {
        "train": documents, "val": ["a val\n"], "test": ["a test\n"]}
    write(tmp_path / "val.txt", "v")
    assert "one character" in refusal(load, str(tmp_path))
    write(tmp_path / "val.jsonl", as_jsonl(documents))
    assert "both val.txt and val.jsonl" in refusal(load, str(tmp_path))


def test_folders_without_texts_are_refused(tmp_path):
    said = refusal(load, str(tmp_path))
    assert "no train.txt" in said and ".jsonl" in said
    write(tmp_path / "val.txt", "a val\n")
    assert "no train.txt;" in refusal(load, str(tmp_path))
    (tmp_path / "val.txt").rename(tmp_path / "other.txt")
    assert "no train.txt;" in refusal(load, str(tmp_path), True)


@pytest.mark.parametrize("large", [0, 10**9])
@pytest.mark.parametrize("line, said", [
    (b'{"text": "a"', "line 3 of {} is not JSON"),
    (b"plain text", "line 3 of {} is not JSON"),
    (b"[" * 100_000, "line 3 of {} is not JSON"),
    (b'{"txt": "a"}', 'line 3 of {} has no field "text"'),
    (b'["text"]', 'line 3 of {} has no field "text"'),
    (b'{"text": 5}', 'the "text" in line 3 of {} is not a string'),
    (b'{"text": "\xff"}', "line 3 of {} is not UTF-8 text (byte 0xff at offset 10 of the line)"),
])
def test_lines_that_hold_no_document_are_refused(large, line, said, tmp_path, limits):
    path = write(tmp_path / "x.jsonl", as_jsonl(["a b"]).encode() + b"\n" + line + b"\n")
    limits(large=large)
    assert said.format(path) in refusal(load, path)


@pytest.mark.parametrize("large", [0, 10**9])
def test_documents_that_cannot_be_split_are_refused(large, tmp_path, limits):
    limits(large=large)
    for texts, said in (([""], "is empty"), ([], "is empty"), (["abc"], "too few to split")):
        path = write(tmp_path / "x.jsonl", as_jsonl(texts) + "\n")
        assert said in refusal(load, path)
    limits(large=10**9)
    path = write(tmp_path / "x.jsonl", as_jsonl(["abcd"] * 3))
    assert "one distinct document" in refusal(load, path)


def test_surrogates_in_json_become_characters(tmp_path):
    texts = json.dumps({"text": "\ud800a"}) + "\n" + r'{"text": "\ud83d\ude42"}' + "\n"
    parts = plain(write(tmp_path / "x.jsonl", texts))
    assert sorted(parts["train"] + parts["val"]) == ["\ufffda", "🙂"]


def test_a_list_of_lines_stays_in_memory(tmp_path, limits):
    limits()
    path = write(tmp_path / "x.jsonl", "one\ntwo\nthree\n")
    assert sorted(sum(load(path, lines=True).splits.values(), [])) == ["one", "three", "two"]


def test_what_tells_whether_data_is_the_same(tmp_path, limits):
    small = {"train": ["é"], "val": ["b", "c"], "test": []}
    assert runs.fingerprint(small) == hashlib.sha256(json.dumps(small).encode()).hexdigest()
    limits(held_out=100)
    text = write(tmp_path / "text.txt", PLAIN.replace("\n", "\r\n"))
    other = write(tmp_path / "copy" / "other.jsonl", as_jsonl([PLAIN]))
    assert runs.fingerprint(load(text).splits) == runs.fingerprint(load(other).splits)
    before = runs.fingerprint(load(text).splits)
    write(tmp_path / "text.txt", PLAIN[:-1] + "!")
    assert runs.fingerprint(load(text).splits) != before


def test_a_text_that_changes_while_it_is_read_is_refused(tmp_path, limits, own):
    limits(held_out=100)
    path = write(tmp_path / "text.txt", PROSE)
    dataset = load(path)
    write(tmp_path / "text.txt", PROSE + "!")
    assert "has changed" in refusal(tokens_of, dataset, own, "train")
    assert entries(tmp_path) == []


# The cache


@pytest.fixture
def prose(tmp_path, limits):
    """A streamed dataset."""
    limits(held_out=2000)
    return load(write(tmp_path / "text.txt", PROSE))


def test_tokens_are_prepared_once(prose, own, tmp_path, monkeypatch, capsys):
    first = tokens_of(prose, own, "train")
    assert isinstance(first, np.memmap) and not first.flags.writeable and first.dtype == np.uint16
    folder = tmp_path / "cache" / "tokens" / entries(tmp_path)[0]
    assert sorted(path.name for path in folder.iterdir()) == ["meta.json", "tokens.bin"]
    meta = json.loads((folder / "meta.json").read_text("utf-8"))
    assert meta["tokens"] == len(first) and meta["source"] == str(tmp_path / "text.txt")
    assert meta["vocab_size"] == own.vocab_size and meta["characters"] == size(
        prose.splits["train"])[1]

    tokens_of(prose, own, "val")
    tokens_of(prose, BytePairTokenizer(own.merges[:-1]), "train")
    assert len(entries(tmp_path)) == 3
    monkeypatch.setattr(BytePairTokenizer, "encode_array", None)
    assert (tokens_of(prose, own, "train") == first).all()
    # the same content in another place
    (tmp_path / "text.txt").rename(tmp_path / "moved.txt")
    assert (tokens_of(load(str(tmp_path / "moved.txt")), own, "train") == first).all()
    assert len(entries(tmp_path)) == 3 and capsys.readouterr().err == ""


def test_many_characters_need_wider_numbers(tmp_path, limits):
    limits(held_out=5000)
    text = " ".join(chr(c) for c in range(33, 65_500) if not 0xD000 <= c < 0xE000)
    dataset = load(write(tmp_path / "text.txt", text))
    wide, narrow = (CharTokenizer("".join(map(chr, range(n)))) for n in (70_000, 65_532))
    assert tokens_of(dataset, wide, "train").dtype == np.uint32
    assert tokens_of(dataset, narrow, "train").dtype == np.uint16
    for tokenizer in (wide, narrow):
        assert tokenizer.decode(tokens_of(dataset, tokenizer, "train")) == text[:-5000]
    assert wide.decode(tokens_of(dataset, wide, "val")) == text[-5000:]


def shorten(entry):
    os.truncate(entry / "tokens.bin", 100)


def age(entry):
    meta = json.loads((entry / "meta.json").read_text("utf-8"))
    (entry / "meta.json").write_text(json.dumps(meta | {"format": 0}))


def replace_by_a_file(entry):
    for path in entry.iterdir():
        path.unlink()
    entry.rmdir()
    entry.write_bytes(b"x")


@pytest.mark.parametrize("harm, said", [
    (shorten, "are damaged"),
    (lambda entry: (entry / "tokens.bin").unlink(), "are damaged"),
    (lambda entry: (entry / "meta.json").unlink(), "are damaged"),
    (lambda entry: (entry / "meta.json").write_bytes(b"\xff"), "are damaged"),
    (lambda entry: (entry / "meta.json").write_text("[]"), "are damaged"),
    (lambda entry: (entry / "meta.json").write_text("{}"), "are damaged"),
    (replace_by_a_file, "are damaged"),
    (age, "are of another version of this project, in format 0"),
])
def test_a_damaged_or_old_entry_is_made_again_and_it_is_said(
    harm, said, prose, own, tmp_path, capsys
):
    first = tokens_of(prose, own, "train").tolist()
    harm(tmp_path / "cache" / "tokens" / entries(tmp_path)[0])
    assert tokens_of(prose, own, "train").tolist() == first
    message = capsys.readouterr().err
    assert message == f"note: the prepared tokens of text {said}; making them again.\n"
    assert len(entries(tmp_path)) == 1
    assert tokens_of(prose, own, "train").tolist() == first and capsys.readouterr().err == ""


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, ValueError])
def test_what_is_interrupted_leaves_nothing(error, prose, own, tmp_path, monkeypatch):
    calls = []

    def fail(self, text):
        calls.append(text)
        if len(calls) > 5:
            raise error
        return np.zeros(len(text), dtype=self.dtype)

    with monkeypatch.context() as patch:
        patch.setattr(BytePairTokenizer, "encode_array", fail)
        with pytest.raises(error):
            tokens_of(prose, own, "train")
    assert entries(tmp_path) == [] and len(calls) < 12
    assert tokens_of(prose, own, "train").tolist() == own.encode("".join(prose.splits["train"]))


def test_a_process_that_is_killed_leaves_what_the_next_one_removes(prose, own, tmp_path):
    code = ("import sys, time; sys.path.insert(0, '.'); from data import *; from data import corpus"
            "; corpus.LARGE, corpus.HELD_OUT = 0, 2000; tokenizer = BytePairTokenizer([]);"
            "tokenizer.encode_array = lambda text: time.sleep(60 * bool(text));"
            "tokens_of(load(sys.argv[1]), tokenizer, 'train')")
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "text.txt")], cwd=ROOT)
    for _ in range(1000):
        if entries(tmp_path):
            break
        time.sleep(0.02)
    left = entries(tmp_path)
    assert len(left) == 1 and left[0].startswith(".") and left[0].endswith(".part")
    tokens_of(prose, own, "val")
    assert left[0] in entries(tmp_path)  # it is at work
    child.send_signal(signal.SIGKILL)
    child.wait()
    tokens_of(prose, own, "train")
    assert len(entries(tmp_path)) == 2 and left[0] not in entries(tmp_path)


def test_leftovers_of_other_machines_go_after_a_day(prose, own, tmp_path):
    folder = tmp_path / "cache" / "tokens"
    names = [f".{'0' * 32}.1.abcdef01.{node}.part" for node in ("elsewhere.org", "far")]
    for name in names:
        write(folder / name / "tokens.bin", "x")
    os.utime(folder / names[0] / "tokens.bin", (0, 0))
    os.utime(folder / names[0], (0, 0))
    tokens_of(prose, own, "train")
    assert names[0] not in entries(tmp_path) and names[1] in entries(tmp_path)


def test_several_at_once_do_not_harm_each_other(prose, own, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: tokens_of(prose, own, "train").tolist(), range(4)))
    assert all(tokens == found[0] for tokens in found) and len(entries(tmp_path)) == 1


def test_a_cache_that_cannot_be_written_is_said(prose, own, tmp_path, monkeypatch):
    def full(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(cache, "flush", full)
        said = refusal(tokens_of, prose, own, "train")
    assert os.strerror(errno.ENOSPC) in said and "RUNGS_CACHE" in said and entries(tmp_path) == []
    monkeypatch.setenv("RUNGS_CACHE", write(tmp_path / "a file", "x"))
    said = refusal(tokens_of, prose, own, "train")
    assert "RUNGS_CACHE" in said and str(tmp_path / "a file") in said


def test_where_the_cache_is(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.setenv("RUNGS_CACHE", "/own")
    assert files.cache_folder() == Path("/own")
    monkeypatch.delenv("RUNGS_CACHE")
    assert files.cache_folder() == Path("/x/rungs")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert files.cache_folder() == Path.home() / ".cache" / "rungs"


# Batches and counts


def slowly(dataset, tokenizer, split, block_size, most=None):
    """Characters and bytes of the targets, one by one."""
    total = np.zeros(2, dtype=int)
    for batch in evaluation_batches(dataset, tokenizer, split, block_size, 64, most):
        rows = batch[1] if dataset.kind == "lines" else [batch[1].ravel()]
        for row in rows:
            for targets in np.split(row, np.flatnonzero(row == END)):
                targets = targets[targets >= 0]
                raw = tokenizer.decode_bytes(targets)
                while raw and 0x80 <= raw[0] < 0xC0:  # the rest of a character begun before
                    total[1] += 1
                    raw = raw[1:]
                # of a character that is cut "replace" makes one, whatever is there of it
                total += (len(raw.decode("utf-8", "replace")), len(raw))
                total += END in targets
    return tuple(total.tolist())


@pytest.mark.parametrize("texts", [[MIXED * 3], ["🙂 é" * 9, "b", MIXED]])
@pytest.mark.parametrize("most", [None, 1, 20, 10**6])
def test_the_extent_of_a_text_is_that_of_its_targets(texts, most, tokenizer):
    if isinstance(tokenizer, CharTokenizer):
        tokenizer = CharTokenizer.train(texts)
    dataset = Dataset("x", "text", {"train": texts, "val": texts[:1], "test": []})
    for block in (1, 7, 10_000):
        found = extent(dataset, tokenizer, "train", block, most)
        if block == 10_000 or tokenizer.kind == "char":  # others cut a character at a border
            assert found == slowly(dataset, tokenizer, "train", block, most)
    ids = split_ids(dataset, tokenizer, "train")
    if not most:
        ends, first = (len(texts) - 1, 0) if len(texts) > 1 else (0, int(ids[0]))
        start = tokenizer.decode_bytes([first])
        whole = "".join(texts).encode("utf-8")
        assert found[1] == len(whole) - len(start) + ends
        assert abs(found[0] - len(whole.decode()) - ends) <= len(start)
    if tokenizer.kind == "char" and not most:
        assert found[0] == characters(dataset, "train")
    assert extent(dataset, tokenizer, "test", 5, most) == (0, 0)


@pytest.mark.parametrize("block", [1, 2, 5, 9, 100])
def test_the_extent_of_lines_ends_where_they_are_cut(block, tokenizer):
    lines = ["ab", "東京都 it's 🙂🙂", "x", "the cat sat on the mat", "é" * 30]
    if isinstance(tokenizer, CharTokenizer):
        tokenizer = CharTokenizer.train(lines)
    dataset = Dataset("x", "lines", {"train": lines, "val": lines[:1], "test": []})
    found = extent(dataset, tokenizer, "train", block)
    assert found == slowly(dataset, tokenizer, "train", block)
    if block == 100:
        assert found == (sum(map(len, lines)) + 5, sum(len(x.encode()) for x in lines) + 5)
    if tokenizer.kind == "char":
        assert found[0] == characters(dataset, "train", block)
    assert extent(dataset, tokenizer, "train") == extent(dataset, tokenizer, "train", 1000)


def test_streamed_texts_make_the_batches_of_texts_in_memory(tmp_path, limits, own):
    path = write(tmp_path / "x.jsonl", as_jsonl(some_documents(300)))
    small = load(path)
    limits(held_out=20_000)
    large = load(path)
    for make in (lambda data: [batches(data, own, 16, 8)(1, step) for step in range(20)],
                 lambda data: evaluation_batches(data, own, "val", 16, 100),
                 lambda data: evaluation_batches(data, own, "train", 16, 100, 333)):
        for one, other in zip(make(small), make(large), strict=True):
            assert len(one) == 3
            assert all(type(b) is np.ndarray and b.dtype == np.int64 and (a == b).all()
                       for a, b in zip(one, other, strict=True))
    assert extent(large, own, "val") == extent(small, own, "val")
    assert extent(large, own, "train", 16, 50) == extent(small, own, "train", 16, 50)


def test_windows_are_a_sequence_that_is_made_anew(own):
    dataset = Dataset("x", "text", {"train": [PROSE], "val": ["a"], "test": []})
    windows = evaluation_batches(dataset, own, "train", 10, 40)
    assert windows and len(windows) == len(list(windows)) == len(list(windows))
    for i in (0, 3, len(windows) - 1, -1, -2):
        assert all((a == b).all() for a, b in zip(windows[i], list(windows)[i], strict=True))
    with pytest.raises(IndexError):
        windows[len(windows)]
    assert len(evaluation_batches(dataset, own, "train", 10, 40, most=85)) == 3
    targets = sum((b[1] >= 0).sum() for b in evaluation_batches(dataset, own, "train", 10, most=85))
    assert targets == 85
    assert not evaluation_batches(dataset, own, "val", 10)


# python -m data


def test_a_streamed_text_is_described(prose, tmp_path, limits):
    text = PROSE.replace("\r\n", "\n")
    report = describe(prose, 2)
    assert f"{len(text.encode()):,} bytes in UTF-8, {len(text):,} characters" in report
    assert f"{len(set(text))} distinct" in report and "1,266 characters" in report
    path = write(tmp_path / "x.jsonl", as_jsonl(some_documents(300)))
    limits(large=10**9)
    small = describe(load(path), 2).splitlines()
    limits(held_out=20_000)
    large = describe(load(path), 2).splitlines()
    differ = ("  documents", "  lines", "  note")
    assert [row for row in small if not row.startswith(differ)] == [
        row for row in large if not row.startswith(differ)]
    assert any("300, mean" in row for row in large)
