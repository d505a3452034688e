"""What all command lines of the project do alike: a sentence for bad input, and exit code 2."""

import argparse
import difflib
import gc
import re
import signal
import sys
from collections.abc import Callable, Iterable
from typing import NoReturn

NO_MEMORY = "out of memory|can't allocate memory"  # as PyTorch says it, on a GPU and a CPU


def nearest(word: str, choices: Iterable[str]) -> str:
    """' Did you mean X?' with the choice most like the word, or '' where none is like it."""
    matches = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f" Did you mean {matches[0]}?" if matches else ""


def flag(name: str) -> str:
    """batch_size -> --batch-size"""
    return "--" + name.replace("_", "-")


class Parser(argparse.ArgumentParser):
    """argparse without abbreviated flags, that suggests the nearest where a word is wrong."""

    def __init__(self, **options):
        super().__init__(
            allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options
        )

    def parse_known_args(self, args=None, namespace=None):
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            flag = unknown[0].split("=")[0]
            hint = nearest(flag, self._option_string_actions) if flag.startswith("-") else ""
            self.error(f"{flag} is not known to {self.prog}.{hint} See {self.prog} --help.")
        return parsed, []

    def error(self, message: str) -> NoReturn:
        # argparse says "invalid choice: 'lstn' (choose from a, b)"; a person wants the nearest one
        wrong = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if wrong:
            message += "." + nearest(wrong[1], re.findall(r"[\w.+-]+", wrong[2]))
        print(f"error: {message}", file=sys.stderr)
        raise SystemExit(2)


def add(group, name: str, text: str, kind: type = int, **more) -> None:
    """A flag of that kind with its help; bool takes no value. Not given, it is None.

    switch: a bool that can be turned off too, by --no-NAME.
    """
    if kind is bool:
        switch = more.pop("switch", False)
        action = argparse.BooleanOptionalAction if switch else "store_true"
        more |= dict(action=action, default=None)
    else:
        more["type"] = kind
        if "choices" not in more:
            more.setdefault("metavar", {int: "N", float: "X"}.get(kind, kind.__name__.upper()))
    group.add_argument(flag(name), help=text, **more)


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run a command. A ValueError or OSError is the user's to mend: a sentence, not a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal without a character shows ? for it
            stream.reconfigure(errors="replace", line_buffering=True)
    if "triton" not in sys.modules:  # which complains of what is not taken apart at the end
        gc.freeze()  # what is imported stays: no need to look for garbage in it
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has gone, as in `... | head`
        sys.stdout = None
        code = 141  # what a shell says of a program that ends so
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not re.search(NO_MEMORY, str(error)):
            raise
        advice = "lower --batch-size, --block-size, --width, --layers or --num"
        print(f"error: out of memory; {advice}.", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("stopped.", file=sys.stderr)
        code = 130
    raise SystemExit(code or 0)


class Interrupts:
    """Ctrl-C or a polite kill asks to stop after the step in hand; a second one stops at once."""

    def __init__(self):
        self.asked = False

    def __enter__(self) -> "Interrupts":
        signals = (signal.SIGINT, signal.SIGTERM)
        self.before = {number: signal.signal(number, self.ask) for number in signals}
        return self

    def ask(self, number, frame) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *error) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
