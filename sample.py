"""Text from any run, one step a token: python sample.py --model=lstm"""

import argparse
import math
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import data
import nanogpt
from data import cli, runs
from data.cli import add, flag
from makemore.model import LanguageModel
from nanogpt.machine import DEVICES, choose

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
        tokenizer = data.tokenizer_from_dict(checkpoint["tokenizer"])
        sizes = (tokenizer.vocab_size, config["block_size"])
        backend = config.get("backend", "torch")
        model = nanogpt.build(config["model"], *sizes, backend, **config["sizes"])
        load_weights(model, checkpoint)
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"the checkpoint is of another version ({error}).") from None
    return model.eval(), tokenizer


def load_weights(model: LanguageModel, checkpoint: dict) -> None:
    """The weights of a checkpoint into its model: the averaged ones, where there are."""
    model.load_state_dict(weights_of(checkpoint))


def weights_of(checkpoint: dict) -> dict[str, Tensor]:
    """The weights of a checkpoint: the averaged ones, where there are."""
    return checkpoint["model"] | checkpoint.get("average", {})


def draw(logits: Tensor, uniform: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """A token for each row of logits (B, V), (B,). uniform (B,) in [0, 1) decides which.

    temperature 0 takes the likeliest. top_k > 0 keeps the k likeliest; top_p < 1 the smallest set
    of likeliest tokens whose probabilities reach it (Holtzman et al. 2020); both: what both keep.
    """
    if temperature == 0:
        return logits.argmax(1)
    if temperature != 1:  # the likeliest is 0 first, so that nothing overflows however cold
        logits = (logits - logits.max(1, keepdim=True).values).double() / temperature
    probabilities = logits.double().softmax(1)
    if 0 < top_k < logits.shape[1] or top_p < 1:
        ordered, tokens = probabilities.sort(dim=1, descending=True, stable=True)
        if top_p < 1:  # a token stays if those before it fall short of top_p
            ordered = ordered.masked_fill(ordered.cumsum(1) - ordered >= top_p, 0)
        if top_k > 0:
            ordered[:, top_k:] = 0
        probabilities = torch.zeros_like(probabilities).scatter(1, tokens, ordered)
    reached = probabilities.cumsum(1)
    # the first token at which the sum passes the drawn share: never one of probability 0
    drawn = torch.searchsorted(reached, uniform[:, None] * reached[:, -1:], right=True)
    return drawn.clamp(max=logits.shape[1] - 1)[:, 0]


@torch.inference_mode()
def generate(
    model: LanguageModel,
    prompts: list[list[int]],
    length: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: int | None = data.END,
    never: Iterable[int] = (),
) -> Iterator[tuple[int, int]]:
    """Yield (sample, token) as they are drawn: at most length for each prompt, until a stop token.

    The prompt is read in one step, then every token takes one step of one token with the state.
    What is drawn for sample i depends on its prompt, (seed, i) and the settings, not on the other
    samples. never: tokens that are never drawn. The model is left in the mode it was found in.
    """
    assert all(prompts) and length >= 0
    device = next(model.parameters()).device
    uniforms = np.stack([uniforms_of(seed, sample, length) for sample in range(len(prompts))])
    uniforms = torch.from_numpy(uniforms)
    banned = torch.zeros(model.vocab_size)
    if never := list(never):
        banned[never] = -torch.inf
    was_training = model.training
    if was_training:
        model.eval()
    try:
        tokens, segments = pack_prompts(prompts, device)
        logits, state = model(tokens, segments=segments)
        going = list(range(len(prompts)))
        for step in range(length):
            last = logits[:, -1].float().cpu() + banned
            drawn = draw(last, uniforms[:, step], temperature, top_k, top_p)
            tokens = drawn.tolist()
            yield from zip(going, tokens)
            if stop in tokens:
                rows = (drawn != stop).nonzero()[:, 0]
                if len(rows) == 0:
                    return
                going = [going[row] for row in rows.tolist()]
                drawn, uniforms, state = drawn[rows], uniforms[rows], state.rows(rows.to(device))
            if step + 1 < length:
                logits, state = model(drawn[:, None].to(device), state)
    finally:
        if was_training:
            model.train()


def uniforms_of(seed: int, sample: int, length: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64([seed, sample])).random(length)


def pack_prompts(prompts: list[list[int]], device="cpu") -> tuple[Tensor, Tensor | None]:
    """tokens and segments (B, T): prompts of different lengths end together.

    What fills up a shorter one on the left is a document of its own, which the model does not see.
    Prompts of one length need no segments: None.
    """
    longest = max(map(len, prompts))
    tokens = torch.tensor([[data.END] * (longest - len(p)) + p for p in prompts], device=device)
    if longest == min(map(len, prompts)):
        return tokens, None
    segments = [[0] * (longest - len(p)) + [1] * len(p) for p in prompts]
    return tokens, torch.tensor(segments, device=device)


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


def stream(
    model: LanguageModel,
    tokenizer: data.Tokenizer,
    prompt: str,
    num: int,
    length: int,
    separated: bool,
    **how,
) -> Iterator[tuple[int, str | None]]:
    """Yield (sample, piece of text) in the order to print them, and (sample, None) at its end.

    All samples are drawn together; the first is shown while it grows, the next wait their turn.
    """
    waiting: list[list[str]] = [[prompt] for _ in range(num)]
    decoders = [tokenizer.decoder() for _ in range(num)]
    begin = starts(prompt, tokenizer, separated)
    never = [data.USER, data.ASSISTANT, data.TURN] + ([] if separated else [data.END])
    drawn = generate(model, [begin] * num, length, never=never, **how)
    shown, over, counts = 0, [False] * num, [0] * num
    for sample, token in drawn:
        counts[sample] += 1
        over[sample] = token == data.END or counts[sample] == length
        waiting[sample].append(decoders[sample].push(token))
        if over[sample]:
            waiting[sample].append(decoders[sample].flush())
        while shown < num and waiting[shown]:
            yield shown, "".join(waiting[shown])
            waiting[shown] = []
            if over[shown]:
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


def main() -> None:
    parser = cli.Parser(prog="sample.py", description=__doc__)
    which = parser.add_argument_group("which run").add_mutually_exclusive_group()
    text = "the newest run of this stage in runs/ (default transformer)"
    add(which, "model", text, str, metavar="STAGE")
    add(which, "run", "a run folder (its best checkpoint), or a checkpoint in it", Path)
    what = parser.add_argument_group("what to write")
    add(what, "prompt", "the beginning that every sample goes on from", str, metavar="TEXT")
    add(what, "num", "samples (default 20 lines, or 1 text)")
    add(what, "length", "at most so many tokens each (default: 2 blocks of lines, 500 of text)")
    how = parser.add_argument_group("how to draw")
    add(how, "temperature", "below 1 safer, above wilder, 0 the likeliest (default 1)", float)
    add(how, "top_k", "only among so many likeliest tokens; 0 is off (default 0)")
    add(how, "top_p", "only among the likeliest that reach this share (default 1: off)", float)
    add(how, "seed", "another seed, other samples (default 0)")
    text = f"{', '.join(DEVICES)} or such as cuda:1 (default auto)"
    add(how, "device", text, str, metavar="DEVICE")
    parser.set_defaults(prompt="", temperature=1.0, top_k=0, top_p=1.0, seed=0, device="auto")
    args = parser.parse_args()
    check(args)

    nanogpt.sizes(args.model or "transformer")  # says so if there is no such stage
    run = args.run or runs.newest_run(args.model or "transformer")
    checkpoint = runs.load_checkpoint(run)
    config = checkpoint["config"]
    model, tokenizer = restore(checkpoint)
    numpy = config.get("backend") == "numpy"
    if numpy and args.device not in ("auto", "cpu"):
        raise ValueError("the model is in NumPy, which computes on the CPU; leave out --device.")
    device = choose("cpu" if numpy else args.device).device
    loss = checkpoint["progress"].get("val_loss", math.nan)
    about = f"{run}: {config['model']} on {config['data']}, val loss {loss:.4f} when last evaluated"
    print(f"{about}; seed {args.seed}", file=sys.stderr, flush=True)
    num, length = defaults(config["kind"], config["block_size"])
    num, length = args.num or num, args.length or length
    samples = stream(
        model.to(device), tokenizer, args.prompt, num, length, config["separated"],
        temperature=args.temperature, top_k=args.top_k, top_p=args.top_p, seed=args.seed,
    )
    lines = config["kind"] == "lines"
    training = training_lines(config) if lines else None
    if lines and not training:
        gone = f"note: {config['data']} is gone or has changed, so no line is marked as known"
        print(gone, file=sys.stderr)
    print_samples(samples, num, lines, training)


def check(args: argparse.Namespace) -> None:
    """ValueError for a setting that cannot work."""
    for name, least in (("num", 1), ("length", 1), ("top_k", 0), ("seed", 0), ("temperature", 0)):
        value = getattr(args, name)
        if value is not None and not least <= value < math.inf:
            raise ValueError(f"{flag(name)} must be a number of at least {least}, not {value}.")
    if not 0 < args.top_p <= 1:
        raise ValueError(f"--top-p must be above 0 and at most 1, not {args.top_p}.")


if __name__ == "__main__":
    cli.run(main)
