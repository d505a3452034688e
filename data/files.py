"""Reading text: UTF-8 whatever the platform, and the files that are downloaded."""

import codecs
import hashlib
import os
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path

# name: (address, SHA-256 of the file)
DOWNLOADS = {
    "usnames": (
        "https://raw.githubusercontent.com/karpathy/makemore/master/names.txt",
        "0a30b5557f192f32ab962680889aac5f6fda0f4cecf40a6d0b5694f58ea8cc4d",
    ),
    "shakespeare": (
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
    "gpt2/vocab.bpe": (
        "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe",
        "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    ),
}
# What needs no download and can be had in its place; for a set it is the names that ship.
INSTEAD = {"gpt2/vocab.bpe": "a byte-pair tokenizer of your own"}
BLOCK = 2**20  # bytes that are read at once of a file of any size
ADVICE = "save it as UTF-8 text first"


def read_text(path: Path) -> str:
    """The text of a UTF-8 file. ValueError if it cannot be read or holds no text."""
    return decode(read_bytes(path), str(path))


def read_bytes(path: Path) -> bytes:
    """The bytes of a file. ValueError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: OSError) -> ValueError:
    """The sentence for a file that cannot be read."""
    return ValueError(f"{path} cannot be read ({error.strerror}); "
                      "check the path and its permissions")


def empty(where: str) -> ValueError:
    """The sentence for a file that holds no text."""
    return ValueError(f"{where} is empty; give a file with text in it")


def decode(raw: bytes, where: str) -> str:
    """UTF-8 bytes to text, without a byte order mark, CRLF made LF. ValueError names `where`."""
    text = "".join(decoded(iter([raw]), where))
    if not text.strip():
        raise empty(where)
    return text


def decoded(blocks: Iterator[bytes], where: str) -> Iterator[str]:
    """The text of a UTF-8 file that comes in blocks, however they cut its characters and CRLFs.

    Without a byte order mark, CRLF made LF. ValueError names `where` and the offset in bytes.
    """
    utf8 = codecs.getincrementaldecoder("utf-8")()
    offset, begun, held = 0, False, ""
    block = next(blocks, b"")
    while block:
        following = next(blocks, b"")
        before = len(utf8.getstate()[0])  # bytes of a character that the last block cut
        try:
            text = utf8.decode(block, final=not following)
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{where} is not UTF-8 text (byte 0x{error.object[error.start]:02x} "
                f"at offset {offset - before + error.start}); {ADVICE}") from None
        if (nul := block.find(0)) >= 0:
            raise ValueError(f"{where} is not text (NUL byte at offset {offset + nul}); {ADVICE}")
        offset += len(block)
        if text and not begun:
            text, begun = text.removeprefix("\ufeff"), True
        text = held + text
        held = "\r" if following and text.endswith("\r") else ""  # its \n may come next
        if text := text[:len(text) - len(held)].replace("\r\n", "\n"):
            yield text
        block = following


def blocks(path: Path, count: Callable[[int], object]) -> Iterator[bytes]:
    """The bytes of a file, BLOCK at a time; count(bytes read) with each. OSError as `open`."""
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            count(len(block))
            yield block


def cache_folder() -> Path:
    """Where downloads and prepared tokens are kept: $RUNGS_CACHE, else rungs in the user's cache.

    That is $XDG_CACHE_HOME, else ~/.cache.
    """
    if own := os.environ.get("RUNGS_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "rungs")


def fetch(name: str) -> bytes:
    """The file of a name in DOWNLOADS: from $RUNGS_DATA, else a cache, else the network.

    ValueError if it is nowhere to be had, or the one in $RUNGS_DATA is another.
    """
    url, sha256 = DOWNLOADS[name]
    if folder := os.environ.get("RUNGS_DATA"):
        own = Path(folder, filename(name))
        if os.path.exists(own):
            raw = read_bytes(own)
            if hashlib.sha256(raw).hexdigest() != sha256:
                raise ValueError(f"{own} is not the {name} that it should be (its SHA-256 "
                                 f"differs); replace it by {url}, or, if it is a text of your "
                                 "own, give its path")
            return raw

    cached = cache_folder() / filename(name)
    # tiktoken keeps what it has downloaded under the SHA-1 of the address.
    folder = os.environ.get("TIKTOKEN_CACHE_DIR") or Path(tempfile.gettempdir(), "data-gym-cache")
    other = Path(folder, hashlib.sha1(url.encode(), usedforsecurity=False).hexdigest())
    for path in (cached, other):
        try:
            raw = path.read_bytes()
            if hashlib.sha256(raw).hexdigest() == sha256:
                return raw
        except OSError:
            pass  # Not there yet.

    raw = download(name)
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        temporary = cached.with_name(f"{cached.name}.{os.getpid()}.tmp")
        temporary.write_bytes(raw)
        os.replace(temporary, cached)
    except OSError:
        pass  # A read-only home: this run has the data, the next one downloads it again.
    return raw


def filename(name: str) -> str:
    """Where the file of a name in DOWNLOADS lies in a folder: usnames.txt, gpt2/vocab.bpe."""
    return name if "." in name else f"{name}.txt"


def download(name: str) -> bytes:
    """The file of a name in DOWNLOADS from the network, or ValueError with the ways to get it."""
    url, sha256 = DOWNLOADS[name]
    advice = (f"connect to the network and try again, or set RUNGS_DATA to a folder that holds "
              f"{filename(name)} ({url}); {INSTEAD.get(name, '--data=names')} needs neither")
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            raw = response.read()
    except (OSError, HTTPException) as error:
        raise ValueError(f"{name} could not be downloaded ({error}); {advice}") from None
    if hashlib.sha256(raw).hexdigest() != sha256:
        raise ValueError(f"the download of {name} is not the file that it should be "
                         f"(its SHA-256 differs); {advice}")
    return raw
