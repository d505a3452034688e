"""Whether the files are there that the book is made of: an installed package lacks them."""

from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).parents[1]


def check() -> None:
    """ValueError: this is no clone of the project."""
    if not (ROOT / "Makefile").is_file():
        raise ValueError("this works in a clone of the project.")


def missing(error: ImportError) -> Callable[[], NoReturn]:
    """A command that says what it lacks: a clone, or else the packages of the book."""

    def main() -> NoReturn:
        check()
        raise ValueError(f"{error.name} is not installed; the book needs it: "
                         "pip install -e '.[book]'")

    return main
