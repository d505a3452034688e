"""Preparing a large text with GPT-2's tokenizer: time and memory, beside one thread of tiktoken.

    RUNGS_DATA=FOLDER python -m benchmarks.prepare [--megabytes=N] [--times=N]

The text is the lines of the tales, drawn at random. tiktoken encodes the same pieces by its plain
encode_ordinary with its own pattern, one after the other, and only that is timed; our seconds are
those from the text on the disk to the tokens on the disk. Both in turn, medians. The memory is the
most that a process of its own had resident, reading and counting the text (load) included.
"""

import datetime
import os
import random
import shutil
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import data
from data import cache, cli, runs

ROOT = Path(__file__).parents[1]
MB = 1_000_000


def write_text(path: Path, size: int) -> None:
    """A text file of about `size` bytes."""
    lines = [line for tale in data.tales() for line in tale["text"].split("\n")]
    draw = random.Random(0)
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        while file.tell() < size:
            file.write("\n".join(draw.choices(lines, k=10_000)) + "\n")


def peak() -> int:
    """The most bytes that this process has had resident."""
    try:
        status = Path("/proc/self/status").read_text("ascii")
        return 1024 * next(int(x.split()[1]) for x in status.splitlines() if "VmHWM" in x)
    except OSError:
        import resource  # not on Linux, where it would count the parent's memory too

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def tokenizer_for(kind: str, dataset: data.Dataset) -> data.Tokenizer:
    """GPT-2's tokenizer, or one of characters."""
    if kind == "gpt2":
        return data.GPT2Tokenizer()
    return data.CharTokenizer.train(text for part in dataset.splits.values() for text in part)


def ours(path: Path, kind: str) -> dict:
    """Prepare all splits of a text."""
    began = time.perf_counter()
    dataset = data.load(str(path))
    loaded = time.perf_counter()
    tokenizer = tokenizer_for(kind, dataset)
    ready = time.perf_counter()
    tokens = sum(len(data.tokens_of(dataset, tokenizer, split)) for split in dataset.splits)
    seconds = time.perf_counter() - ready
    return {
        "what": f"rungs, {kind}", "threads": cache.cores(), "tokens": tokens, "seconds": seconds,
        "load_seconds": loaded - began, "peak_bytes": peak(),
    }


def theirs(path: Path) -> dict:
    """Encode the same pieces with tiktoken."""
    import tiktoken
    from tiktoken_ext.openai_public import r50k_pat_str

    dataset = data.load(str(path))
    ranks = data.GPT2Tokenizer().ids
    plain = tiktoken.Encoding("plain", pat_str=r50k_pat_str, mergeable_ranks=ranks,
                              special_tokens={})
    tokens, seconds = 0, 0.0
    for part in dataset.splits.values():
        for text in part:
            began = time.perf_counter()
            ids = plain.encode_ordinary(text)
            seconds += time.perf_counter() - began
            tokens += len(ids)
    return {"what": "tiktoken", "threads": 1, "tokens": tokens, "seconds": seconds}


def alone(job, *args) -> dict:
    """The result of a job in a new process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(job, *args).result()


def middle(some: list[dict]) -> dict:
    """One row of several runs: the median of their seconds, which are kept beside it."""
    times = [row["seconds"] for row in some]
    return some[0] | {"seconds": statistics.median(times), "all_seconds": times}


def main() -> None:
    title = __doc__.split("\n")[0]
    parser = cli.Parser(prog="python -m benchmarks.prepare", description=title)
    parser.add_argument("--megabytes", type=int, default=1000, metavar="N", help="default 1000")
    parser.add_argument("--times", type=int, default=3, metavar="N", help="of each (default 3)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/prepare.json",
                        metavar="FILE", help="default benchmarks/results/prepare.json")
    args = parser.parse_args()
    if args.megabytes < 40:
        parser.error("--megabytes must be at least 40: less is not streamed")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["RUNGS_CACHE"] = str(Path(scratch, "cache"))
        path = Path(scratch, "text.txt")
        write_text(path, args.megabytes * MB)
        size = path.stat().st_size
        turns = {"tiktoken": [], "gpt2": []}
        for _ in range(args.times):
            turns["tiktoken"].append(alone(theirs, path))
            turns["gpt2"].append(alone(ours, path, "gpt2"))
            shutil.rmtree(os.environ["RUNGS_CACHE"])
        rows = [middle(some) for some in turns.values()] + [alone(ours, path, "char")]
    print("| | threads | seconds | MB a second | times tiktoken | peak MB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        row["bytes_per_second"] = size / row["seconds"]
        row["ratio"] = rows[0]["seconds"] / row["seconds"]
        memory = f"{row['peak_bytes'] / MB:,.0f}" if "peak_bytes" in row else ""
        print(f"| {row['what']} | {row['threads']} | {row['seconds']:.1f} "
              f"| {row['bytes_per_second'] / MB:.1f} | {row['ratio']:.2f} | {memory} |")
    about = {"date": datetime.date.today().isoformat(), "environment": runs.environment()}
    runs.write_json(args.out, about | {"bytes": size, "rows": rows})


if __name__ == "__main__":
    cli.run(main)
