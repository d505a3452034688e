"""The files that hold other people's weights (weights.py): fetched, opened, and what is damaged in
them said in a sentence."""

import json
import os
import re
import urllib.request
import zipfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from data.files import read_text

# GPT-2's name of a tensor -> its name in the file, the file, and what reads it there
Tensors = dict[str, tuple[str, Path, Callable[[str], Tensor]]]


def download(url: str, path: Path) -> None:
    """A file of the network as `path`, whole or not at all. OSError or HTTPException."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            path.parent.mkdir(parents=True, exist_ok=True)
            length = int(response.headers.get("Content-Length") or 0)
            bar = tqdm(desc=path.name, total=length, unit="B", unit_scale=True, disable=None)
            with bar, open(temporary, "wb") as file:
                while block := response.read(2**20):
                    file.write(block)
                    bar.update(len(block))
        if length and (there := temporary.stat().st_size) != length:
            raise OSError(f"it broke off after {there} of {length} bytes")
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


def whole(settings: dict, name: str, where: Path) -> int:
    """A setting that counts something. ValueError: it is no whole number of at least 1."""
    value = settings.get(name)
    if type(value) is not int or value < 1:
        raise ValueError(f"{where}: {name} is {value!r}, not a whole number of at least 1.")
    return value


def read_json(path: Path) -> dict:
    """A file with one JSON object. ValueError: there is none, or it is broken."""
    text = read_text(path)
    with suppress(json.JSONDecodeError):
        if isinstance(value := json.loads(text), dict):
            return value
    raise ValueError(f"{path} is damaged: it is not one object in JSON; get it anew.")


def by_name(names: Iterable[str], path: Path, read: Callable[[str], Tensor]) -> Tensors:
    """The tensors of a file with these names, of which some are longer than GPT-2's."""
    # torch.compile puts _orig_mod. in front of all names, and a head its body's name
    short = r"^(_orig_mod\.)?(transformer\.)?"
    return {re.sub(short, "", name): (name, path, read) for name in names}


def open_tensors(path: Path) -> Tensors:
    """The tensors of a file. ValueError: it is missing, cut off or damaged."""
    if path.suffix != ".safetensors":
        content = unpickle(path)
        if not isinstance(content, dict):
            raise ValueError(f"{path} does not hold tensors by their names.")
        return by_name(content, path, content.get)
    try:
        file = safe_open(path, framework="pt")
        return by_name(file.keys(), path, file.get_tensor)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing.") from None
    except SafetensorError as error:
        what = damage(path) or f"is damaged ({error})"
        raise ValueError(f"{path} {what}; get it anew.") from None


def damage(path: Path) -> str:
    """What is wrong with a safetensors file, or '': it is a header in JSON, then the tensors.

    https://github.com/huggingface/safetensors#format
    """
    size = path.stat().st_size
    try:
        with open(path, "rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(start, size) - 8))
        header.pop("__metadata__", None)
        for begin, end, name in sorted((*part["data_offsets"], n) for n, part in header.items()):
            if start + end > size:
                there = f"{max(0, size - start - begin)} of its {end - begin} bytes are there"
                return f"is cut off in the tensor {name}, {there}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return "is cut off in its header, or is no safetensors file (a pointer of Git LFS is none)"
    return ""


def unpickle(path: Path):
    """What torch.save wrote, if it is plain values and tensors; these stay in the file for now.

    ValueError: it is missing or damaged, or holds something else.
    """
    try:
        mapped = zipfile.is_zipfile(path)  # its older format cannot be
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing.") from None
    except PermissionError:
        raise
    except Exception:  # what a damaged pickle makes torch.load raise knows no bounds
        raise ValueError(f"{path} is damaged, or no weights; of a model of transformers, name the "
                         "folder that holds its config.json.") from None
