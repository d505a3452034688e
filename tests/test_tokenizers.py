"""data/bpe.py and the tokenizers on it: training, encoding, streams, GPT-2's vocabulary."""

import hashlib
import io
import json
import os
import random
import subprocess
import sys
import unicodedata
import urllib.error
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import tiktoken.load

from data import (
    SPECIALS,
    BytePairTokenizer,
    CharTokenizer,
    GPT2Tokenizer,
    bpe,
    files,
    tales,
    tokenizer_from_dict,
)

ROOT = Path(__file__).parents[1]
BROKEN = "\ufffd"
FAMILY = "👩\u200d👩\u200d👧"
TRICKY = [
    "", " ", "  ", "\n", " \n ", "\r\n\r\n", "a", " a", "a  b   c    ", "\t\tx\n\n  y \n",
    "it's we'll", "IT'S 'sun' I'd've", "don’t", "naïve re\u0301sume\u0301 e\u0301\u0302\u0303",
    "Ωμέγα 東京都 привет", FAMILY + " 🇫🇷🇫🇷 👍🏽!", "x\u00a0y\u3000z\u2028w\u0085v\u200bu",
    "3.14159 ²½ Ⅷ 一二三 ٣", "\0\x7f\x1c\x1d", "\ufeffmark", "a\ufeff", "ﬁﬂ",
    "<|end|> <|endoftext|><|user|>", "if x == 1:\n        return '''s'''",
    "\ud800", "a\udfffb", "\ud83d\ude00", "\ude00\ud83d",
    "x" * 700, "ab" * 700, " " * 700, "é東" * 200, " \n" * 300 + "end", "!?" * 400,
]


def some_texts(count, surrogates=True):
    """Seeded texts of every kind of character that has been assigned."""
    rng = random.Random(5)
    # Of Unicode 3.2: a later letter may be one to only one of regex and tiktoken.
    category = unicodedata.ucd_3_2_0.category
    assigned = [chr(c) for c in range(0x110000) if category(chr(c)) not in ("Cn", "Cs")]
    kinds = ["etaoin shrdlu", "'sdmtlvre", " \n\t\r\u3000\x85", "0123456789½", ".,!?-_()",
             "e\u0301\u0302\u0327", FAMILY + "🏽🇫🇷", "東京都日本語", assigned]
    kinds += ["\ud800\ude00\udfff"] * surrogates
    for _ in range(count):
        kind = rng.choices(kinds, k=rng.randint(1, 9))
        yield "".join("".join(rng.choices(letters, k=rng.randint(1, 12))) for letters in kind)


@pytest.fixture(scope="module")
def own():
    """Byte pairs of some tales."""
    return BytePairTokenizer.train((tale["text"] for tale in tales()[:200]), 900)


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


@pytest.fixture(params=["own", "gpt2"])
def subwords(request):
    return request.getfixturevalue(request.param)


def refusal(call, *args):
    """The one sentence with which a call refuses its arguments."""
    with pytest.raises(ValueError) as caught:
        call(*args)
    assert "\n" not in str(caught.value) and 20 < len(str(caught.value)) < 500
    return str(caught.value)


# Training


def naive(texts, merges):
    """The same by its definition: count all pairs anew at every step."""
    count = Counter(word for text in texts for word in bpe.split(text))
    words = [(list(word.encode("utf-8")), n) for word, n in count.items()]
    learned = []
    while len(learned) < merges:
        pairs = Counter()
        for word, n in words:
            for pair in zip(word, word[1:]):
                pairs[pair] += n
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        for word, _ in words:
            i = 0
            while i + 1 < len(word):
                if (word[i], word[i + 1]) == best:
                    word[i:i + 2] = [256 + len(learned)]
                i += 1
        learned.append(best)
    return learned


@pytest.mark.parametrize("texts", [
    [], [""], ["a"], ["aa"], ["aaaaaaa aaaa aaa"], ["abababab bababa"], ["aab aaab abaab " * 3],
    ["hug pug pun bun hugs " * 5, "hugs! pugs?"], ["東京都 京都 東東京京"], TRICKY,
])
def test_merges_are_those_of_counting_anew_at_every_step(texts):
    assert bpe.train_bpe(texts, 150) == naive(texts, 150)


def test_merges_of_random_texts_are_those_of_counting_anew():
    rng = random.Random(3)
    for letters in ("a ", "ab", "ab ", "abc  ", "étà "):
        for _ in range(8):
            texts = ["".join(rng.choices(letters, k=60)) for _ in range(3)]
            assert bpe.train_bpe(texts, 40) == naive(texts, 40)


def test_ties_go_to_the_lowest_ranks():
    assert bpe.train_bpe(["ba", "ab", "aa"], 3) == [(97, 97), (97, 98), (98, 97)]


def test_merges_do_not_depend_on_the_hash_seed():
    code = "from data import bpe, tales; print(bpe.train_bpe([tales()[0]['text']], 99))"
    found = {subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60,
                            capture_output=True, env={**os.environ, "PYTHONHASHSEED": seed}).stdout
             for seed in "12"}
    assert len(found) == 1


def test_a_text_with_few_pairs_gives_a_smaller_vocabulary():
    assert BytePairTokenizer.train(["abab"], 5000).vocab_size == 4 + 256 + 2
    assert BytePairTokenizer.train([], 5000).vocab_size == 4 + 256
    assert BytePairTokenizer.train(["abab"], 260).merges == []
    assert "need 260" in refusal(BytePairTokenizer.train, ["abab"], 259)


def test_training_and_encoding_split_alike():
    text = " ".join(text for text in some_texts(40, surrogates=False)) + "".join(TRICKY[:24])
    tokenizer = BytePairTokenizer.train([text], 50_000)  # every word to its end
    words = bpe.split(text)
    assert "".join(words) == text
    assert [tokenizer.decode([i]) for i in tokenizer.encode(text)] == words


# Encoding


def test_the_plain_encoder_equals_tiktoken(subwords):
    for text in [*TRICKY, *some_texts(400)]:
        assert bpe.encode(text, subwords.ids) == subwords.encode(text)


def test_the_plain_encoder_equals_tiktoken_on_bytes_that_are_not_utf8(subwords):
    rng, text = random.Random(7), f" the naïve {FAMILY} ".encode() * 3
    chunks = [rng.randbytes(rng.randint(1, 40)) for _ in range(300)]
    chunks += [text[i:i + n] for i in range(40) for n in (1, 7, 30)]
    assert bpe.encode_chunk(b"", subwords.ids) == []
    for chunk in chunks:
        ids = bpe.encode_chunk(chunk, subwords.ids)
        assert ids == subwords._encoding._encode_single_piece(chunk)
        assert subwords.decode_bytes(ids) == chunk
        assert subwords.decode(ids) == chunk.decode("utf-8", "replace")


def test_text_comes_back_from_its_ids(subwords):
    sizes = subwords.token_bytes()
    assert sizes.shape == (subwords.vocab_size,) and (sizes[:4] == 0).all()
    for text in [*TRICKY, *some_texts(400)]:
        ids = subwords.encode(text)
        assert all(4 <= i < subwords.vocab_size for i in ids)
        assert subwords.decode(ids) == bpe.well_formed(text)
        assert sizes[ids].sum() == len(bpe.well_formed(text).encode("utf-8"))
    assert bpe.well_formed("a\ud800b\ud83d\ude00") == f"a{BROKEN}b😀"


@pytest.mark.parametrize("text", ["{}", "{}b", "a {}b\n"])
def test_a_million_blanks_are_encoded(own, text):
    text = text.format("\n" * 1_200_000)
    assert own.decode(own.encode(text)) == text


def test_special_tokens_are_not_read_and_give_no_text(subwords):
    for text in [*SPECIALS, "<|endoftext|>"]:
        ids = subwords.encode(text)
        assert len(ids) > 1 and subwords.decode(ids) == text
        assert all(4 <= i < 50_260 for i in ids)
    a = subwords.encode("a")
    odd = [0, *a, 1, 2, 3, -1, -100, subwords.vocab_size, 10**9, *a]
    assert subwords.decode(odd) == subwords.decode(np.array(odd)) == "aa"


def test_the_ids_of_own_byte_pairs():
    tokenizer = BytePairTokenizer.train(["low low lower"], 263)
    assert tokenizer.merges == [(108, 111), (256, 119), (32, 257)]
    assert [tokenizer.decode_bytes([4 + value]) for value in range(256)] == [
        bytes([value]) for value in range(256)]
    assert [tokenizer.decode([i]) for i in (260, 261, 262)] == ["lo", "low", " low"]
    assert tokenizer.encode("low lows") == [261, 262, 4 + ord("s")]
    assert tokenizer.token_bytes()[-4:].tolist() == [1, 2, 3, 4]


def test_a_user_of_characters_does_not_import_tiktoken():
    code = ("import sys, data; t = data.CharTokenizer.train(['ab']); t.decode(t.encode('ba')); "
            "sys.exit(bool({'tiktoken', 'regex', 'tqdm', 'torch'} & set(sys.modules)))")
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0


# Streams


def test_a_character_of_several_tokens_is_shown_when_it_is_whole():
    tokenizer = BytePairTokenizer([])
    decoder = tokenizer.decoder()
    shown = [decoder.push(i) for i in tokenizer.encode("é👍")]
    assert shown == ["", "é", "", "", "", "👍"] and decoder.flush() == ""


def test_what_stays_unfinished_is_shown_as_broken():
    tokenizer = BytePairTokenizer([])
    decoder = tokenizer.decoder()
    thumb = tokenizer.encode("👍")
    assert [decoder.push(i) for i in thumb[:3]] == [""] * 3 and decoder.flush() == BROKEN
    assert decoder.push(4 + ord("a")) == "a"  # it starts afresh
    assert [decoder.push(i) for i in (thumb[0], 4 + ord("b"))] == ["", BROKEN + "b"]
    assert decoder.push(0) == decoder.push(999) == decoder.flush() == ""


def test_a_stream_gives_the_text_that_decode_gives(subwords):
    for text in [*TRICKY, *some_texts(100, surrogates=False)]:
        decoder = subwords.decoder()
        text = bpe.well_formed(text)
        shown = [decoder.push(i) for i in subwords.encode(text)]
        assert "".join(shown) == text and decoder.flush() == ""
    rng = np.random.default_rng(0)
    for _ in range(50):
        ids = rng.integers(-2, subwords.vocab_size + 2, 60)
        decoder = subwords.decoder()
        assert "".join(map(decoder.push, ids)) + decoder.flush() == subwords.decode(ids)


def test_streams_and_bytes_of_characters():
    tokenizer = CharTokenizer("aé👍")
    decoder = tokenizer.decoder()
    assert [decoder.push(i) for i in (6, 0, 5, 7, 4)] == ["👍", "", "é", "", "a"]
    assert decoder.flush() == ""
    assert tokenizer.decode_bytes([5, 3, 4]) == "éa".encode()
    assert tokenizer.token_bytes().tolist() == [0, 0, 0, 0, 1, 2, 4]


# Plain values


def test_byte_pairs_come_back_from_plain_values(own):
    plain = own.to_dict()
    assert json.loads(json.dumps(plain)) == plain and len(json.dumps(plain)) < 15 * len(own.merges)
    again = tokenizer_from_dict(json.loads(json.dumps(plain)))
    assert isinstance(again, BytePairTokenizer) and again.merges == own.merges
    assert again.vocab_size == own.vocab_size and again.encode("the cat") == own.encode("the cat")


def test_gpt2_comes_back_from_plain_values(gpt2):
    again = tokenizer_from_dict(json.loads(json.dumps(gpt2.to_dict())))
    assert isinstance(again, GPT2Tokenizer) and again.tokens == gpt2.tokens


@pytest.mark.parametrize("merges", [
    None, 5, "ab", {"a": 1}, [5], ["ab"], [[1]], [[1, 2, 3]], [[1.0, 2]], [[True, 2]], [["1", 2]],
    [[-1, 2]], [[256, 1]], [[1, 2], [256, 258]], [[1, 2], [1, 2]],
    [[1, 2], [2, 3], [1, 257], [256, 3]],
])
def test_damaged_merges_are_refused(merges):
    for read in (tokenizer_from_dict, BytePairTokenizer.from_dict):
        assert "damaged" in refusal(read, {"kind": "bpe", "merges": merges})


def test_other_damaged_values_are_refused():
    for d in ({}, None, [], "bpe", {"kind": None}, {"kind": ["bpe"]}, {"kind": "word"}):
        for read in (tokenizer_from_dict, *(t.from_dict for t in (CharTokenizer, BytePairTokenizer,
                                                                  GPT2Tokenizer))):
            refusal(read, d)
    for d in ({"kind": "bpe"}, {"kind": "char"}, {"kind": "char", "characters": "aba"},
              {"kind": "char", "characters": [1]}):
        assert "damaged" in refusal(tokenizer_from_dict, d)
    assert "'char'" in refusal(BytePairTokenizer.from_dict, {"kind": "char", "characters": "a"})


# GPT-2


def test_known_ids_of_gpt2(gpt2):
    known = {
        "Hello world": [15496, 995],
        "hello world": [31373, 995],
        "<|endoftext|>": [27, 91, 437, 1659, 5239, 91, 29],
        "!": [0],
        " the": [262],
        "\n\n": [628],
    }
    for text, ids in known.items():
        assert gpt2.encode(text) == [i + 4 for i in ids]
    assert gpt2.vocab_size == 50_257 + 4 and len(gpt2.ids) == 50_256
    assert gpt2.tokens[-1] == b"" and gpt2.decode([50_256 + 4]) == ""


def test_ids_of_gpt2_are_those_of_tiktoken_from_the_same_files(gpt2, monkeypatch):
    folder = Path(os.environ.get("RUNGS_DATA", "nowhere"), "gpt2")
    if not (folder / "encoder.json").exists() or not (folder / "vocab.bpe").exists():
        pytest.skip("RUNGS_DATA has no gpt2/encoder.json and gpt2/vocab.bpe")
    public = pytest.importorskip("tiktoken_ext.openai_public")
    # As it is, it would leave copies in tiktoken's cache.
    monkeypatch.setattr(tiktoken.load, "read_file_cached", lambda path, _: Path(path).read_bytes())
    ranks = tiktoken.load.data_gym_to_mergeable_bpe_ranks(
        str(folder / "vocab.bpe"), str(folder / "encoder.json"))
    assert gpt2.ids == {token: rank + 4 for token, rank in ranks.items()}
    theirs = tiktoken.Encoding("theirs", pat_str=public.r50k_pat_str, mergeable_ranks=ranks,
                               special_tokens={"<|endoftext|>": 50_256})
    for text in [*TRICKY, *some_texts(1000)]:
        assert gpt2.encode(text) == [i + 4 for i in theirs.encode_ordinary(text)]


@pytest.fixture
def small_gpt2(tmp_path, monkeypatch):
    """The bytes of a file that stands for vocab.bpe; nothing is cached and the network is off."""
    raw = "#version: 0.2\nĠ t\nĠt h\nÃ ©\nĊ Ċ\n".encode()
    url = "https://x/vocab.bpe"
    monkeypatch.setitem(files.DOWNLOADS, "gpt2/vocab.bpe", (url, hashlib.sha256(raw).hexdigest()))
    monkeypatch.delenv("RUNGS_DATA", raising=False)
    monkeypatch.delenv("RUNGS_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "tiktoken"))

    def offline(url, timeout):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(files.urllib.request, "urlopen", offline)
    return raw


def small_tokens():
    tokens = GPT2Tokenizer().tokens[4:]
    assert sorted(tokens[:256]) == [bytes([value]) for value in range(256)]
    assert tokens[:3] == [b"!", b'"', b"#"] and tokens[188:190] == [b"\0", b"\1"]
    return tokens[256:]


def test_the_file_of_gpt2_is_read_by_its_rules(small_gpt2, tmp_path, monkeypatch):
    monkeypatch.setenv("RUNGS_DATA", str(tmp_path))
    (tmp_path / "gpt2").mkdir()
    own = tmp_path / "gpt2" / "vocab.bpe"
    own.write_bytes(small_gpt2)
    assert small_tokens() == [b" t", b" th", "é".encode(), b"\n\n", b""]
    own.write_bytes(small_gpt2 + b"x")
    assert "SHA-256" in (said := refusal(GPT2Tokenizer)) and str(own) in said


def test_without_file_and_network_both_ways_are_said(small_gpt2):
    for call in (GPT2Tokenizer, lambda: tokenizer_from_dict({"kind": "gpt2"})):
        said = refusal(call)
        assert "network" in said and "RUNGS_DATA" in said and "gpt2/vocab.bpe" in said


def test_the_download_of_gpt2_is_checked_and_cached(small_gpt2, tmp_path, monkeypatch):
    served = [b"<html>log in</html>", small_gpt2]
    monkeypatch.setattr(files.urllib.request, "urlopen",
                        lambda url, timeout: io.BytesIO(served.pop(0)))
    assert "SHA-256" in refusal(GPT2Tokenizer)
    assert small_tokens() == small_tokens() and not served
    assert (tmp_path / "cache" / "rungs" / "gpt2" / "vocab.bpe").read_bytes() == small_gpt2


def test_what_tiktoken_has_downloaded_serves_too(small_gpt2, tmp_path):
    (tmp_path / "tiktoken").mkdir()
    name = hashlib.sha1(b"https://x/vocab.bpe").hexdigest()
    (tmp_path / "tiktoken" / name).write_bytes(small_gpt2)
    assert small_tokens()[0] == b" t"


def test_a_twin_gives_the_same_and_shares_no_regular_expression():
    for tokenizer in (BytePairTokenizer.train(["the cat sat on the mat"], 270),
                      CharTokenizer("abc ")):
        tokenizer.encode_array("abc")
        twin = tokenizer.twin()
        assert np.array_equal(twin.encode_array("a cab"), tokenizer.encode_array("a cab"))
        assert twin.to_dict() == tokenizer.to_dict()
        if tokenizer.kind == "bpe":
            assert twin._encoding is not tokenizer._encoding and twin.tokens is tokenizer.tokens
