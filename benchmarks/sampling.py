"""Sampling: characters and tokens per second, ours beside makemore's and nanoGPT's.

    python -m benchmarks.sampling --makemore CLONE
    python -m benchmarks.sampling --nanogpt CLONE [--sizes nano baby gpt2] [--transformers]
    python -m benchmarks.sampling --transformers --device cuda --dtypes bfloat16 --batches 1 64

With makemore: names from the transformer. The names and the split are makemore's, as in
benchmarks.ladder. Both models have their default sizes and are first trained for 500 steps, so that
they write names of natural length. Then they take turns, round by round, in one process: batches of
1 and of 100 names, with the generate() that each project's own command line uses. Characters are
those delivered, the end of a name counted as one; makemore draws a fixed number for every name and
throws away what follows its end. "drawn" counts those too: it is the speed of the step alone, with
ours not stopping at the end either.

With nanoGPT: one text of 500 tokens by models of the same size with weights at random, in turn in
one process. nanoGPT computes all of its block anew for every token, so the later tokens cost it
more; where --peer-tokens has it draw fewer, they are those in the middle of the 500, after a prompt
of as many as came before. Ours are the same network (--arch=gpt2) or that of --arch=modern, as it
is and compiled, where the time until the second token is told apart. transformers has its own cache
and more positions than the block where the text is longer.

With transformers alone: GPT-2's network with the same weights and dtype in both, batches of 1,000
tokens each, in turn in one process: its generate with its static cache, which it compiles on a GPU;
ours compiled, with the attention that --attention=auto chooses there and with PyTorch's. "off": the
largest difference of the logits of a prompt. --toy: at a toy size, on the CPU, nothing compiled.
"""

import copy
import datetime
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

import data
from benchmarks import makemore_peer, nanogpt_peer, timing
from benchmarks.ladder import ROOT, makemore_split, timed
from data import cli, runs
from nanogpt import attention
from nanogpt.generate import compile_step
from nanogpt.gpt import ARCHS, GPT, SIZES
from nanogpt.machine import DEVICES, DTYPES, choose
from nanogpt.weights import translate
from sample import generate, load_run

LENGTH = 15  # what makemore draws for a name: the longest of its names
NAMES = 200  # a round
VOCABULARY = {"gpt2": 50304}  # of Shakespeare's characters else, as in nanoGPT
CHARACTERS = 65
TOY = dict(layers=1, heads=2, width=16, block_size=16)


def our_round(model, batch: int, stop: int | None, seed: int) -> int:
    """Draw NAMES names; the number of characters."""
    total = 0
    for i in range(NAMES // batch):
        prompts = [[data.END]] * batch
        total += sum(1 for _ in generate(model, prompts, LENGTH, seed=seed * NAMES + i, stop=stop))
    return total


def their_round(names: dict, model, batch: int, stop: int | None, seed: int) -> int:
    """The same with makemore's generate."""
    torch.manual_seed(seed)
    total = 0
    with torch.inference_mode():
        for _ in range(NAMES // batch):
            begin = torch.zeros(batch, 1, dtype=torch.long)
            drawn = names["generate"](model, begin, LENGTH, do_sample=True)[:, 1:].tolist()
            for row in drawn:
                total += row.index(0) + 1 if stop is not None and 0 in row else len(row)
    return total


def turns(jobs: list[Callable[[int], int]], rounds: int) -> list[list[float]]:
    """What each job returns a second in each round, after one round that does not count."""
    speeds: list[list[float]] = [[] for _ in jobs]
    for round in range(rounds + 1):
        for speed, job in zip(speeds, jobs):
            began = time.perf_counter()
            count = job(round)
            speed.append(count / (time.perf_counter() - began))
    return [speed[1:] for speed in speeds]


def beside_makemore(clone: Path, rounds: int) -> list[dict]:
    """The rows of names; a row for each way to count and each size of a batch."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = makemore_split(Path(scratch, "usnames_makemore"))
        options = ["--steps=500", "--device=cpu", "--lines", f"--out={scratch}/ours"]
        timed([sys.executable, "train.py", f"--data={folder}", *options])
        options = ["-i", str(clone / "names.txt"), "-o", f"{scratch}/theirs", "--max-steps=501"]
        timed([sys.executable, "-m", "benchmarks.makemore_peer", str(clone), *options])
        model, _ = load_run(f"{scratch}/ours")
        weights = Path(scratch, "theirs", "model.pt")
        names, peer = makemore_peer.load(clone, "transformer", 27, 16, weights)
    rows = []
    for what, stop in (("delivered", data.END), ("drawn", None)):
        for batch in (1, 100):
            jobs = [
                partial(our_round, model, batch, stop),
                partial(their_round, names, peer, batch, stop),
            ]
            ours, theirs = turns(jobs, rounds)
            rows.append({
                "characters": what,
                "batch": batch,
                "ours_per_second": statistics.median(ours),
                "makemore_per_second": statistics.median(theirs),
                "ratio": statistics.median(a / b for a, b in zip(ours, theirs)),
            })
    print("| characters | batch | ours, a second | makemore, a second | ratio |")
    print("| --- | --- | --- | --- | --- |")
    for row in rows:
        speeds = f"{row['ours_per_second']:,.0f} | {row['makemore_per_second']:,.0f}"
        print(f"| {row['characters']} | {row['batch']} | {speeds} | {row['ratio']:.1f} |")
    return rows


def text_of(
    model: GPT, tokens: int, step: Callable | None, seed: int, batch: int = 1
) -> int:
    """Draw texts of so many tokens; the number of all."""
    prompts = [[data.END]] * batch
    return sum(1 for _ in generate(model, prompts, tokens, seed=seed, stop=None, step=step))


def ours(size: str, arch: str, dtype: str, compiled: bool, tokens: int) -> tuple[dict, Callable]:
    """What a model of ours is, and its job."""
    sizes = dict(SIZES[size])
    vocab_size = VOCABULARY.get(size, CHARACTERS)
    model = GPT(vocab_size, sizes.pop("block_size"), **sizes, **ARCHS[arch]).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype))
    step, what = compile_step(model) if compiled else None, {}
    if step:
        began = time.perf_counter()
        drawn = generate(model, [[data.END]], tokens, stop=None, step=step)
        next(drawn), next(drawn)
        what["warm_up_seconds"] = time.perf_counter() - began
    what = {"model": "rungs", "arch": arch, "dtype": dtype, "compiled": compiled} | what
    return what, partial(text_of, model, tokens, step)


def nanogpt(clone: Path, size: str, tokens: int, few: int) -> tuple[dict, Callable]:
    """nanoGPT's model of that size and its job, which may draw a few tokens of the middle."""
    model = nanogpt_peer.load(clone, VOCABULARY.get(size, CHARACTERS), **SIZES[size])
    few = min(few or tokens, tokens)
    prompt = 1 + (tokens - few) // 2

    def job(seed: int) -> int:
        torch.manual_seed(seed)
        nanogpt_peer.draw(model, prompt, few)
        return few

    what = {"model": "nanoGPT", "arch": "gpt2", "dtype": "float32", "compiled": False}
    return what | ({"tokens_drawn": few, "after": prompt} if few < tokens else {}), job


def transformers(size: str, tokens: int) -> tuple[dict, Callable]:
    """transformers' GPT-2 of that size, with its cache, and its job."""
    from transformers import GPT2Config, GPT2LMHeadModel  # only who asks for it needs it

    sizes = SIZES[size]
    config = GPT2Config(
        vocab_size=VOCABULARY.get(size, CHARACTERS), n_layer=sizes["layers"],
        n_head=sizes["heads"], n_embd=sizes["width"], eos_token_id=None, pad_token_id=1,
        bos_token_id=0, n_positions=max(sizes["block_size"], tokens + 1),
    )
    model = GPT2LMHeadModel(config).eval()

    def job(seed: int) -> int:
        torch.manual_seed(seed)
        begin = torch.zeros(1, 1, dtype=torch.long)
        with torch.inference_mode():
            drawn = model.generate(begin, attention_mask=torch.ones_like(begin), do_sample=True,
                                   max_new_tokens=tokens, top_k=0)
        return drawn.shape[1] - 1

    return {"model": "transformers", "arch": "gpt2", "dtype": "float32", "compiled": False}, job


def beside_nanogpt(size: str, args) -> list[dict]:
    """The rows of one size; nanoGPT's first."""
    pairs = [nanogpt(args.nanogpt, size, args.tokens, args.peer_tokens)]
    if args.transformers:
        pairs.append(transformers(size, args.tokens))
    for arch in args.archs:
        for compiled in (False, True):
            pairs += [ours(size, arch, dtype, compiled, args.tokens) for dtype in args.dtypes]
    speeds = turns([job for _, job in pairs], args.rounds or 3)
    return [
        {
            "size": size, "tokens": args.tokens, **what,
            "per_second": statistics.median(speed),
            "ratio": statistics.median(a / b for a, b in zip(speed, speeds[0])),
        }
        for (what, _), speed in zip(pairs, speeds)
    ]


def same_weights(model: GPT):
    """transformers' GPT-2 with the weights of ours, in their dtype and place."""
    from transformers import GPT2Config, GPT2LMHeadModel

    width = model.embedding.embedding_dim
    config = GPT2Config(
        vocab_size=model.vocab_size, n_layer=len(model.layers), n_embd=width,
        n_head=model.layers[0].attention.heads, n_positions=model.block_size, eos_token_id=None,
        pad_token_id=1, bos_token_id=0,
    )
    state = {}
    for name, tensor in model.state_dict().items():
        theirs, turned = translate(name)
        place = theirs if theirs.startswith("lm_head") else f"transformer.{theirs}"
        state[place] = tensor.T if turned else tensor
    peer = GPT2LMHeadModel(config).to(model.head.weight)
    peer.load_state_dict(state)
    return peer.eval()


def their_texts(peer, tokens: int, batch: int, seed: int) -> int:
    """As text_of, by transformers' generate with its static cache."""
    torch.manual_seed(seed)
    begin = torch.zeros(batch, 1, dtype=torch.long, device=peer.device)
    with torch.inference_mode():
        drawn = peer.generate(
            begin, attention_mask=torch.ones_like(begin), do_sample=True, top_k=0,
            max_new_tokens=tokens, min_new_tokens=tokens, cache_implementation="static",
            disable_compile=peer.device.type == "cpu",  # where it would not by itself
        )
    return drawn[:, 1:].cpu().numel()  # which waits for them


@torch.inference_mode()
def logits_off(peer, model: GPT) -> float:
    """The largest difference of the logits after a prompt."""
    vocabulary, length = model.vocab_size, min(64, model.block_size)
    prompt = torch.randint(vocabulary, (1, length), device=peer.device)
    return (peer(prompt).logits - model(prompt)[0]).abs().max().item()


def beside_transformers(args) -> list[dict]:
    """The rows of each size of a batch; transformers' first."""
    machine = choose(args.device, args.dtypes[0], not args.toy)
    ways = list(dict.fromkeys((attention.choose("auto", machine), "sdpa")))
    rows = []
    for batch in args.batches:
        torch.manual_seed(0)
        sizes = dict(TOY if args.toy else SIZES["gpt2"])
        vocabulary = CHARACTERS if args.toy else VOCABULARY["gpt2"]
        model = GPT(vocabulary, sizes.pop("block_size"), **sizes, **ARCHS["gpt2"]).eval()
        model.to(machine.device, getattr(torch, machine.dtype))
        peer = same_weights(model)
        found = [{"model": "transformers", "compiled": machine.kind != "cpu"}]
        jobs = [partial(their_texts, peer, args.tokens, batch)]
        for how in ways:
            ours = copy.deepcopy(model)
            attention.use(ours, how)
            step = compile_step(ours) if machine.compiled else None
            found.append({"model": "rungs", "attention": how, "compiled": bool(step)})
            jobs.append(partial(text_of, ours, args.tokens, step, batch=batch))
        off, speeds = logits_off(peer, model), turns(jobs, args.rounds or 3)
        rows += [
            {"batch": batch, "tokens": args.tokens, "dtype": machine.dtype, "off": off, **what,
             "per_second": statistics.median(speed),
             "ratio": statistics.median(a / b for a, b in zip(speed, speeds[0]))}
            for what, speed in zip(found, speeds)
        ]
    return rows


def print_batches(rows: list[dict]) -> None:
    print("| batch | model | tokens a second | times transformers | logits off |")
    print("| --- | --- | --- | --- | --- |")
    for row in rows:
        name = row["model"] + f", {row.get('attention')}" * ("attention" in row)
        name += ", compiled" * row["compiled"]
        speed = f"{row['per_second']:,.1f} | {row['ratio']:.2f}"
        print(f"| {row['batch']} | {name} | {speed} | {row['off']:.1e} |")


def print_sizes(rows: list[dict]) -> None:
    print("| size | model | tokens a second | times nanoGPT | warm-up, seconds |")
    print("| --- | --- | --- | --- | --- |")
    for row in rows:
        name = f"{row['model']}, {row['arch']}, {row['dtype']}" + ", compiled" * row["compiled"]
        if "tokens_drawn" in row:
            name += f" ({row['tokens_drawn']} tokens, after {row['after']})"
        warm = f"{row['warm_up_seconds']:.1f}" if "warm_up_seconds" in row else ""
        speed = f"{row['per_second']:,.1f} | {row['ratio']:.2f}"
        print(f"| {row['size']} | {name} | {speed} | {warm} |")


def main() -> None:
    parser = cli.Parser(prog="python -m benchmarks.sampling", description=__doc__.split("\n")[0])
    parser.add_argument("--makemore", type=Path, metavar="CLONE", help="a clone of makemore")
    parser.add_argument("--nanogpt", type=Path, metavar="CLONE", help="a clone of nanoGPT")
    parser.add_argument("--rounds", type=int, metavar="N", help="default 5, with nanoGPT 3")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["nano", "baby", "gpt2"],
                        help="default nano baby gpt2")
    parser.add_argument("--archs", nargs="+", choices=ARCHS, default=["gpt2"],
                        help="of ours (default gpt2: the same network)")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["float32"],
                        help="of our weights (default float32)")
    parser.add_argument("--tokens", type=int, metavar="N",
                        help="default 500, beside transformers alone 1000")
    parser.add_argument("--peer-tokens", type=int, metavar="N",
                        help="how many of them nanoGPT draws, where all take long (default all)")
    parser.add_argument("--transformers", action="store_true", help="beside transformers, too")
    parser.add_argument("--device", choices=DEVICES[1:], default="cpu",
                        help="beside transformers alone (default cpu)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64], metavar="N",
                        help="beside transformers alone (default 1 64)")
    parser.add_argument("--toy", action="store_true", help="... at a toy size, on the CPU")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/sampling.json",
                        metavar="FILE", help="default benchmarks/results/sampling.json")
    args = parser.parse_args()
    if not args.makemore and not args.nanogpt and not args.transformers:
        parser.error("give --makemore or --nanogpt and where a clone is, or --transformers")
    if min(*args.batches, args.rounds or 1, args.tokens or 1) < 1:
        raise ValueError("--batches, --rounds and --tokens must be at least 1.")
    alone = args.transformers and not args.nanogpt
    args.tokens = args.tokens or (1000 if alone else 500)
    if args.toy:
        args.device, args.dtypes, args.batches = "cpu", ["float32"], [1, 2]
        args.tokens, args.rounds = 5, 1
    args.out.parent.mkdir(parents=True, exist_ok=True)
    about = {"date": datetime.date.today().isoformat(), "environment": runs.environment()}
    results = json.loads(args.out.read_text("utf-8")) if args.out.exists() else {}
    if args.makemore:  # each with its own date, for they need not be of one day
        results |= about | {"rows": beside_makemore(args.makemore.resolve(), args.rounds or 5)}
    if args.nanogpt:
        args.nanogpt = args.nanogpt.resolve()
        with tempfile.TemporaryDirectory() as scratch:  # so that nothing is compiled already
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = scratch
            rows = [row for size in args.sizes for row in beside_nanogpt(size, args)]
        print_sizes(rows)
        before = results.get("nanogpt", {}).get("rows", [])
        kept = [row for row in before if row["size"] not in args.sizes]
        results["nanogpt"] = about | {"rows": kept + rows}
    if alone:
        rows = beside_transformers(args)
        print_batches(rows)
        results["transformers"] = timing.about(args.device) | {"rows": rows}
    runs.write_json(args.out, results)


if __name__ == "__main__":
    cli.run(main)
