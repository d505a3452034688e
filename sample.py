"""Text from any run, one step a token: python sample.py --model=lstm"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

import data
import nanogpt
from data import cli, runs
from data.cli import add, flag
from makemore.model import LanguageModel
from nanogpt import attention
from nanogpt.generate import compile_step, draw, generate, pack_prompts, uniforms_of  # noqa: F401
from nanogpt.machine import DEVICES, DTYPES, Machine, choose

KNOWN = "  (in the training set)"


def load_run(path: str | Path) -> tuple[LanguageModel, data.Tokenizer]:
    """The model, in evaluation mode, and the tokenizer of a run folder (its best) or a checkpoint.

    ValueError: no checkpoint there, or one that is damaged or of another version.
    """
    return restore(runs.load_checkpoint(Path(path)))


def restore(checkpoint: dict) -> tuple[LanguageModel, data.Tokenizer]:
    """The model and the tokenizer in a checkpoint that is loaded. ValueError: another version's."""
    try:
        config = checkpoint["config"]
        check_speaks(checkpoint)
        tokenizer = data.tokenizer_from_dict(checkpoint["tokenizer"])
        sizes = (tokenizer.vocab_size, config["block_size"])
        backend = config.get("backend", "torch")
        model = nanogpt.build(config["model"], *sizes, backend, **config["sizes"])
        load_weights(model, checkpoint)
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"the checkpoint is of another version ({error}).") from None
    return model.eval(), tokenizer


def check_speaks(checkpoint: dict) -> None:
    """ValueError for a finetuned run whose checkpoint is no language model, or not yet one."""
    finetuned = checkpoint["config"].get("finetune")
    if finetuned and finetuned["kind"] == "classify":
        raise ValueError("this run sorts texts: python sample.py --run=RUN --classify TEXT")
    if finetuned and finetuned["tuning"]["tune"] != "all" and not checkpoint.get("merged"):
        raise ValueError("this run was stopped before what it learned was merged into its weights; "
                         "end it first: python -m finetune.instruct --resume=RUN")


def load_weights(model: LanguageModel, checkpoint: dict) -> None:
    """The weights of a checkpoint into its model: the averaged ones, where there are."""
    model.load_state_dict(weights_of(checkpoint))


def weights_of(checkpoint: dict) -> dict[str, Tensor]:
    """The weights of a checkpoint: the averaged ones, where there are."""
    return checkpoint["model"] | checkpoint.get("average", {})


def starts(prompt: str, tokenizer: data.Tokenizer, separated: bool) -> list[int]:
    """The tokens that a sample goes on from. ValueError: a character the model has never seen.

    A document begins with the END token. A text that was never parted has none, so there a
    sample without a prompt begins on a new line, or where there is none, with the first character.
    """
    if separated:
        return [data.END] + tokenizer.encode(prompt)
    if not prompt:
        known = tokenizer.characters if tokenizer.kind == "char" else "\n"
        prompt = "\n" if "\n" in known else known[0]
    return tokenizer.encode(prompt)


def never_drawn(tokenizer: data.Tokenizer, separated: bool) -> list[int]:
    """The tokens that no sample has: those without text, and END where no text ever ended."""
    return [*tokenizer.silent] + ([] if separated else [data.END])


class Writer:
    """Makes text of the tokens of a sample, up to where the first stop string would stand.

    What may be the beginning of a stop string is held back until it is sure that it is none.
    """

    def __init__(self, tokenizer: data.Tokenizer, stops: Sequence[str] = ()):
        self.decoder, self.stops = tokenizer.decoder(), stops
        self.held, self.stopped = "", False

    def push(self, token: int) -> str:
        """The text that is certain with this token, perhaps none."""
        return self.pass_on(self.decoder.push(token))

    def flush(self) -> str:
        """What was held back, for the sample ends here."""
        text = self.pass_on(self.decoder.flush()) + self.held
        self.held = ""
        return text

    def pass_on(self, text: str) -> str:
        if self.stopped:
            return ""
        text = self.held + text
        # of those that are there the one that ends first, however many characters came at once
        ends = [(text.index(stop) + len(stop), -len(stop)) for stop in self.stops if stop in text]
        if ends:
            self.held, self.stopped = "", True
            return text[:sum(min(ends))]
        begun = [n for stop in self.stops for n in range(len(stop)) if text.endswith(stop[:n])]
        certain = len(text) - max(begun, default=0)
        self.held = text[certain:]
        return text[:certain]


def stream(
    model: LanguageModel,
    tokenizer: data.Tokenizer,
    prompt: str,
    num: int,
    length: int,
    separated: bool,
    stops: Sequence[str] = (),
    counts: list[int] | None = None,
    **how,
) -> Iterator[tuple[int, str | None]]:
    """Yield (sample, piece of text) in the order to print them, and (sample, None) at its end.

    All samples are drawn together; the first is shown while it grows, the next wait their turn.
    stops: texts that end a sample where they would stand. counts: is given the number of tokens
    drawn of each. how: of `generate`.
    """
    waiting: list[list[str]] = [[prompt] for _ in range(num)]
    writers = [Writer(tokenizer, stops) for _ in range(num)]
    begin = starts(prompt, tokenizer, separated)
    shown, over, counts = 0, set(), [] if counts is None else counts
    counts[:] = [0] * num
    never = never_drawn(tokenizer, separated)
    for sample, token in generate(model, [begin] * num, length, never=never, over=over, **how):
        counts[sample] += 1
        writer = writers[sample]
        waiting[sample].append(writer.push(token))
        if token == data.END or counts[sample] == length or writer.stopped:
            over.add(sample)
            waiting[sample].append(writer.flush())
        while shown < num and waiting[shown]:
            yield shown, "".join(waiting[shown])
            waiting[shown] = []
            if shown in over:
                yield shown, None
                shown += 1


def texts(*arguments, **how) -> list[str]:
    """The samples of `stream`, whole."""
    whole: dict[int, str] = {}
    for sample, piece in stream(*arguments, **how):
        whole[sample] = whole.get(sample, "") + (piece or "")
    return list(whole.values())


def defaults(kind: str, block_size: int) -> tuple[int, int]:
    """How many samples to write of a run on "lines" or "text", and at most how many tokens each."""
    return (20, 2 * block_size) if kind == "lines" else (1, 500)


def summary(samples: list[str], training: set[str]) -> str:
    """How many lines are new and how many stand in the training set."""
    known = sum(sample in training for sample in samples)
    new = len(samples) - known
    return (
        f"{new} of {len(samples)} ({new / len(samples):.0%}) are new, "
        f"{known} ({known / len(samples):.0%}) stand in the training set"
    )


def report(samples: list[str], training: set[str] | None) -> str:
    """The samples, and for lines which of them stand in the training set."""
    if training is None:
        return "\n".join(samples) + "\n"
    marks = [KNOWN if text in training else "" for text in samples]
    lines = [f"{text}{mark}" for text, mark in zip(samples, marks, strict=True)]
    return "\n".join([*lines, summary(samples, training)]) + "\n"


def print_samples(
    samples: Iterator[tuple[int, str | None]], num: int, lines: bool, training: set[str] | None
) -> None:
    """Print what `stream` yields as it comes; for lines also which stand in the training set."""
    shown = [""]
    for sample, piece in samples:
        if piece is not None:
            shown[-1] += piece
            print(piece, end="", flush=True)
            continue
        print(KNOWN if training and shown[-1] in training else "")
        if not lines and sample < num - 1:
            print("-" * 40)
        shown.append("")
    if training:
        print(summary(shown[:-1], training))


def training_lines(config: dict) -> set[str] | None:
    """The lines that a run was trained on; None where they are not to be had any more."""
    try:
        dataset = data.load(config["data"], config["lines"])
    except (ValueError, OSError):
        return None
    same = runs.fingerprint(dataset.splits) == config["fingerprint"]
    return set(dataset.splits["train"]) if same else None


def make_parser() -> cli.Parser:
    parser = cli.Parser(prog="sample.py", description=__doc__)
    which = parser.add_argument_group("which run").add_mutually_exclusive_group()
    text = "the newest run of this stage in runs/ (default transformer)"
    add(which, "model", text, str, metavar="STAGE")
    text = "a run folder (its best checkpoint), or a checkpoint in it; of --web several"
    add(which, "run", text, Path, action="append")
    what = parser.add_argument_group("what to write")
    add(what, "prompt", "the beginning that every sample goes on from", str, metavar="TEXT")
    add(what, "num", "samples (default 20 lines, or 1 text)")
    add(what, "length", "at most so many tokens each (default: 2 blocks of lines, 500 of text)")
    text = "end a sample where this would stand; may be given several times"
    add(what, "stop", text, str, metavar="TEXT", action="append")
    text = "talk with the --run of finetune.instruct; with --prompt one turn"
    add(what, "chat", text, bool)
    text = "the labels that the --run of finetune.classify gives this text"
    add(what, "classify", text, str, metavar="TEXT")
    add(what, "ngrams", "with --classify: ask the n-grams that are kept with the run too", bool)
    page = parser.add_argument_group("a page to play with")
    text = "serve one on this machine, with any two runs side by side (default all of runs/)"
    add(page, "web", text, bool)
    add(page, "port", "where (default: the first that is free from 8000 on)")
    how = parser.add_argument_group("how to draw")
    add(how, "temperature", "below 1 safer, above wilder, 0 the likeliest (default 1)", float)
    add(how, "top_k", "only among so many likeliest tokens; 0 is off (default 0)")
    add(how, "top_p", "only among the likeliest that reach this share (default 1: off)", float)
    add(how, "seed", "another seed, other samples (default 0)")
    machine = parser.add_argument_group("machine")
    text = f"{', '.join(DEVICES)} or such as cuda:1 (default auto)"
    add(machine, "device", text, str, metavar="DEVICE")
    text = "of the weights of gpt; in bfloat16 a large one is faster, as it is read from memory for"
    add(machine, "dtype", f"{text} every token (default float32)", str, choices=DTYPES)
    text = "of transformer and gpt: sdpa is PyTorch's, triton ours, on a GPU (default auto)"
    add(machine, "attention", text, str, choices=list(attention.CHOICES))
    text = "torch.compile, for gpt: seconds to start, then several times as fast"
    add(machine, "compile", text, bool)
    parser.set_defaults(
        prompt="", stop=[], temperature=1.0, top_k=0, top_p=1.0, seed=0, device="auto",
        dtype="float32", compile=False, attention="auto",
    )
    return parser


def main() -> None:
    args = make_parser().parse_args()
    check(args)
    if args.web:
        from book import play  # only here, for the page is built on this file

        return play.main(args)
    nanogpt.sizes(args.model or "transformer")  # says so if there is no such stage
    if args.classify is not None or args.chat:
        check_finetuned(args)
    run = args.run[0] if args.run else runs.newest_run(args.model or "transformer")
    if args.classify is not None:
        from finetune import talk  # only here, for finetune is built on this file

        return talk.classify(run, args)
    checkpoint = runs.load_checkpoint(run)
    config = checkpoint["config"]
    model, tokenizer = restore(checkpoint)
    instructed = config.get("finetune", {}).get("kind") == "instruct"
    if args.chat or instructed and args.prompt:
        from finetune import talk

        return talk.chat(model, tokenizer, config, run, args)
    machine = place(model, config, args)
    loss = checkpoint["progress"].get("val_loss", math.nan)
    about = f"{run}: {config['model']} on {config['data']}"
    if math.isfinite(loss):  # of weights that came from elsewhere nothing is known
        about += f", val loss {loss:.4f} when last evaluated"
    say(f"{about}; seed {args.seed}")
    num, length = defaults(config["kind"], config["block_size"])
    num, length = args.num or num, args.length or length
    lines, separated = config["kind"] == "lines", config["separated"]
    training = training_lines(config) if lines else None
    if lines and not training:
        say(f"note: {config['data']} is gone or has changed, so no line is marked as known")
    step = None
    if machine.compiled:
        step = warm_up(model, [starts(args.prompt, tokenizer, separated)] * num, length)
    counts: list[int] = []
    samples = stream(
        model, tokenizer, args.prompt, num, length, separated, args.stop, counts, step=step,
        temperature=args.temperature, top_k=args.top_k, top_p=args.top_p, seed=args.seed,
    )
    began = time.perf_counter()
    print_samples(samples, num, lines, training)
    seconds, tokens = time.perf_counter() - began, sum(counts)
    say(f"{tokens:,} tokens in {seconds:.2f} seconds: {tokens / seconds:,.0f} tokens/s")


def say(text: str) -> None:
    """To stderr: what stdout gets is the samples, and nothing else."""
    print(text, file=sys.stderr, flush=True)


def place(model: LanguageModel, config: dict, args: argparse.Namespace) -> Machine:
    """Move the model to where it computes, in the dtype asked for.

    ValueError: a device that is not there, or what a model of this kind cannot do.
    """
    gpt, numpy = config["model"] == "gpt", config.get("backend") == "numpy"
    if numpy and args.device not in ("auto", "cpu"):
        raise ValueError("the model is in NumPy, which computes on the CPU; leave out --device.")
    if args.dtype != "float32" and not gpt:
        raise ValueError(f"--dtype is for runs of gpt, and this is one of {config['model']}.")
    machine = choose("cpu" if numpy else args.device, args.dtype, args.compile and gpt)
    for note in machine.notes:
        say(f"note: {note}")
    if args.compile and not gpt:
        say(f"note: --compile is for runs of gpt, and does nothing for {config['model']}")
    model.to(machine.device)
    if config["model"] in attention.STAGES:
        attention.use(model, attention.choose(args.attention, machine))
    for parameter in model.parameters():  # but not what positions turn by
        parameter.data = parameter.data.to(getattr(torch, machine.dtype))
    return machine


def warm_up(model: LanguageModel, prompts: list[list[int]], length: int) -> Callable | None:
    """The step of a model, compiled for these prompts; None if that failed. Says how long it took.
    """
    began = time.perf_counter()
    try:
        step = compile_step(model)
        drawn = generate(model, prompts, length, stop=None, step=step)
        for _ in islice(drawn, 3 * len(prompts)):  # two steps: a GPU's second becomes its graph
            pass
    except Exception as error:  # whatever the compiler throws, sampling can go on without it
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:150]
        say(f"note: Not compiled: {reason}; going on without.")
        return None
    say(f"compiled in {time.perf_counter() - began:.1f} seconds")
    return step


def check(args: argparse.Namespace) -> None:
    """ValueError for a setting that cannot work."""
    for name, least in (("num", 1), ("length", 1), ("top_k", 0), ("seed", 0), ("temperature", 0)):
        value = getattr(args, name)
        if value is not None and not least <= value < math.inf:
            raise ValueError(f"{flag(name)} must be a number of at least {least}, not {value}.")
    if not 0 < args.top_p <= 1:
        raise ValueError(f"--top-p must be above 0 and at most 1, not {args.top_p}.")
    if not all(args.stop):
        raise ValueError("--stop must be a text of at least one character.")
    if args.ngrams and args.classify is None:
        raise ValueError("--ngrams is for sorting a text; give it with --classify=TEXT.")
    if args.web:
        return check_web(args)
    if args.port is not None:
        raise ValueError("--port is where --web serves its page; give both, or none.")
    if args.run and len(args.run) > 1:
        raise ValueError("several runs side by side are for --web; here name one --run.")


def check_web(args: argparse.Namespace) -> None:
    """ValueError for what does not go with the page."""
    alone = ("model", "prompt", "num", "length", "stop", "chat", "classify", "compile")
    given = [flag(name) for name in alone if getattr(args, name) not in (None, "", [], False)]
    if given:
        raise ValueError(f"{given[0]} does not go with --web, where the page asks for all that; "
                         "leave it out (--run says which runs to offer).")
    from book.play import BOUNDS  # only here, for the page is built on this file

    for name in ("temperature", "top_k", "top_p", "seed"):
        (least, most), value = BOUNDS[name], getattr(args, name)
        if not least <= value <= most:
            raise ValueError(f"with --web {flag(name)} must be from {least} to {most}, not "
                             f"{value}.")
    if args.port is not None and not 0 <= args.port <= 65535:
        raise ValueError(f"--port must be from 0, any that is free, to 65535, not {args.port}.")


def check_finetuned(args: argparse.Namespace) -> None:
    """ValueError for flags that do not go with --classify or --chat."""
    what, kind = ("--chat", "instruct") if args.classify is None else ("--classify", "classify")
    if not args.run:
        raise ValueError(f"{what} is for a run of finetune.{kind}; name it: --run=RUN.")
    if kind == "instruct":
        return
    drawing = ("temperature", "top_k", "top_p", "seed")
    plain = make_parser()
    for name in ("chat", "prompt", "stop", "num", "length", "compile", *drawing):
        if getattr(args, name) not in (None, False, plain.get_default(name)):
            raise ValueError(f"--classify sorts a text, and {flag(name)} is for writing one; leave "
                             "one of them out.")


if __name__ == "__main__":
    cli.run(main)
