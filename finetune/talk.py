"""What sample.py does with a finetuned run: talk with it, or let it sort a text."""

import argparse
import sys
from pathlib import Path

import data
import sample
from makemore.model import LanguageModel
from nanogpt.machine import choose

from . import sorting
from .chat import Talk, message_ids
from .pretrained import check_format, place

BYE = ("", "/quit", "/exit")


def classify(run: Path, args: argparse.Namespace) -> None:
    """Print the labels of args.classify and their probabilities, the likeliest first.

    ValueError: a run that does not sort or has no n-grams, or a text of which nothing is left.
    """
    classifier, tokenizer, saved = sorting.load_classifier(run)
    machine = choose(args.device, args.dtype)
    place(classifier.model, saved["model"], machine, args.attention)
    classifier.to(machine.device)
    ngrams = sorting.load_ngrams(run, saved) if args.ngrams else None
    if args.ngrams and not ngrams:
        folder = run if run.is_dir() else run.parent
        way = "finetune again without --no-baselines"
        if saved["finetune"].get("baselines"):  # it was stopped before, or is of an older version
            way = f"let the run come to its end: python -m finetune.classify --resume={folder}"
        raise ValueError(f"{folder} has no n-grams; leave out --ngrams, or {way}.")
    found, notes = sorting.assign(classifier, tokenizer, saved, args.classify, machine, ngrams)
    for note in notes:
        sample.say(f"note: {note}")
    width = max(len(label) for label, _ in found)
    for label, probability in found:
        print(f"{label:<{width}}  {probability:6.1%}")


def chat(
    model: LanguageModel, tokenizer: data.Tokenizer, config: dict, run: Path,
    args: argparse.Namespace,
) -> None:
    """Answer args.prompt, or what is typed, until the end of the input, /quit or an empty line.

    ValueError: a run that never learned to.
    """
    if config.get("finetune", {}).get("kind") != "instruct":
        raise ValueError(f"{run} never learned to talk; teach it: python -m finetune.instruct "
                         f"--from={run}")
    check_format(config)
    if args.stop or args.num or args.compile:
        raise ValueError("--stop, --num and --compile are not for talking with a run; leave them "
                         "out.")
    sample.place(model, config, args)
    length = args.length or config["block_size"]
    talk = Talk(model, tokenizer, args.temperature, args.top_k, args.top_p, args.seed)
    if args.prompt:
        turn(talk, args.prompt, length)
        return
    sample.say(f"{run}: say something; an empty line, /quit or Ctrl-D ends.")
    while True:
        print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line or line.strip() in BYE:
            return
        try:
            turn(talk, line.strip(), length)
        except ValueError as error:  # of this line; the next may do better
            sample.say(f"note: {error}")


def turn(talk: Talk, text: str, length: int) -> None:
    """One question and its answer, printed as it comes."""
    ids, unseen, lowered = message_ids(talk.tokenizer, text)
    limit = getattr(talk.model, "limit", None)
    if unseen:
        sample.say(f"note: {unseen} characters that the run has never seen are left out")
    if lowered:
        sample.say(f"note: {lowered} capitals that the run has never seen are read as small "
                   "letters")
    if limit and len(ids) + 3 > limit:
        sample.say(f"note: the text has {len(ids)} tokens, more than the block of {limit} has room "
                   "for; its beginning is cut off")
    for piece in talk.say(text, length):
        print(piece, end="", flush=True)
    print()
