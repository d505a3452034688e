"""The tables of the articles, as Markdown, from files of results: of the benchmarks, and of
results.py. A function each, by whose name a mark asks for it."""

import json
import statistics
from collections.abc import Callable
from pathlib import Path

from benchmarks import baby as benchmark_of_baby
from benchmarks import finetune as benchmark_of_finetuning
from benchmarks import growth as benchmark_of_growth
from benchmarks import instruct as benchmark_of_instructions
from benchmarks import ladder as benchmark_of_ladder
from benchmarks import nano as benchmark_of_nano
from benchmarks import pieces as benchmark_of_pieces
from benchmarks import race as benchmark_of_race
from benchmarks import text as benchmark_of_text
from benchmarks import tunings as benchmark_of_tunings
from benchmarks import without_torch as benchmark_of_numpy
from makemore import diff
from nanogpt import check

ROOT = Path(__file__).parents[1]
NANO = {  # what the README calls the contenders
    "ours": "ours, `--recipe=shakespeare-nano`",
    "nanoGPT": "nanoGPT",
    "ours, for longer": "ours for longer, 1,000 steps of 32 rows",
}


def read(file: str) -> dict:
    """A file of results. FileNotFoundError: it was not made."""
    return json.loads((ROOT / file).read_text("utf-8"))


def benchmark(name: str) -> dict:
    return read(f"benchmarks/results/{name}.json")


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table, all of it text."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def rungs() -> str:
    """The ladder as the README has it: each stage with its article, its idea and its loss."""
    rows = []
    for stage, result in read("book/results/ladder.json")["stages"].items():
        article = "nanogpt/gpt.md" if stage == "gpt" else f"makemore/{stage}.md"
        loss = f"{result['test_loss']:.4f}" + " (tales)" * (result["data"] != "names")
        rows.append([f"[{stage}]({article})", diff.idea(stage), f"{result['parameters']:,}", loss])
    return markdown(["stage", "what position t knows", "parameters", "test loss"], rows)


def peers() -> str:
    """What the README says of makemore, nanoGPT and transformers."""
    one, other = ([row for row in benchmark("race")["rows"] if row["stage"] == stage]
                  for stage in ("transformer", "makemore transformer"))
    speeds = {(row["model"], row["compiled"]): row["per_second"]
              for row in benchmark("sampling")["nanogpt"]["rows"]
              if (row["size"], row["arch"], row["dtype"]) == ("gpt2", "gpt2", "float32")}

    def medians(rows: list[dict]) -> list[float]:
        return [statistics.median(row[name] for row in rows) for name in ("test_loss", "seconds")]

    def reached(loss: float, seconds: float) -> str:
        return f"{loss:.3f} in {seconds:.0f} s"

    mine, theirs = (benchmark_of_nano.medians(benchmark("nano")["rows"], model)
                    for model in ("ours", "nanoGPT"))
    return markdown(["", "ours", "theirs"], [
        ["makemore's names, a transformer (`--recipe=quick-transformer`): test loss",
         reached(*medians(one)), f"makemore {reached(*medians(other))}"],
        ["tiny shakespeare, 0.8 million parameters (`--recipe=shakespeare-nano`): validation loss",
         reached(*mine), f"nanoGPT {reached(*theirs)}"],
        ["500 tokens from a network of GPT-2's size: tokens a second",
         f"{speeds['rungs', False]:.0f}, compiled {speeds['rungs', True]:.0f}",
         f"nanoGPT {speeds['nanoGPT', False]:.1f}, transformers "
         f"{speeds['transformers', False]:.0f}"],
    ])


def ladder() -> str:
    """Every stage on makemore's names and split, beside makemore's own."""
    return benchmark_of_ladder.table(benchmark("ladder")["rows"])


def without_torch() -> str:
    """The stages in NumPy on the same, beside makemore's MLP."""
    rows = benchmark("without_torch")["rows"]
    named = [row | {"stage": f"*{row['stage']}*"} if "makemore" in row["stage"] else row
             for row in rows]
    # makemore's runs have one seed, and so one loss
    return benchmark_of_numpy.table(named).replace(" ±0.0000", "")


def nano() -> str:
    """GPT of nano size on tiny shakespeare, beside nanoGPT."""
    rows = [row | {"model": NANO[row["model"]]} for row in benchmark("nano")["rows"]]
    return benchmark_of_nano.table(rows)


def race() -> str:
    """The stages by their quick recipes, beside makemore."""
    return benchmark_of_race.table(benchmark("race")["rows"])


def baby() -> str:
    """GPT of baby size on a CPU, beside nanoGPT."""
    return benchmark_of_baby.table(benchmark("baby")["rows"])


def floors() -> str:
    """Where the seconds of our runs go: the process, its steps, the floor below these."""
    groups = {f"names, {row['stage']}": [other for other in benchmark("race")["rows"]
                                         if other["stage"] == row["stage"]]
              for row in benchmark("race")["rows"] if not row["stage"].startswith("makemore")}
    groups["shakespeare, nano"] = [r for r in benchmark("nano")["rows"] if r["model"] == "ours"]
    baby_rows = benchmark("baby")["rows"]
    groups["shakespeare, baby"] = [row | {"floor_seconds": benchmark_of_baby.floor(baby_rows)}
                                   for row in baby_rows if "losses" in row]
    rows = []
    for name, group in groups.items():
        all_, steps = (statistics.median(row[key] for row in group)
                       for key in ("seconds", "steps_seconds"))
        floor = min(row["floor_seconds"] for row in group)  # the speed is measured in each
        seconds = [f"{value:,.1f}" for value in (all_, steps, floor)]
        rows.append([name, *seconds, f"{floor / steps:.0%}"])
    head = ["run", "seconds in all", "of its steps", "their floor", "share of the floor"]
    return markdown(head, rows)


def pieces() -> str:
    """What each lever of speed brings."""
    return benchmark_of_pieces.table(benchmark("pieces")["rows"])


def growth() -> str:
    """What a step costs against width, layers, block size and batch."""
    return benchmark_of_growth.table(benchmark("growth")["rows"])


def expected() -> str:
    """The losses that recipes come to on their way, over the seeds."""
    rows = []
    for recipe in read("nanogpt/expected.json")["recipes"]:
        what = recipe["settings"]
        losses = [recipe["losses"].get(str(round(share * what["steps"])))
                  for share in check.SHARES]
        rows.append([f"`{recipe['command']}`", f"{what['steps']:,}",
                     *(benchmark_of_ladder.spread(each) if each else "-" for each in losses)])
    shares = [f"at {share:.0%}" for share in check.SHARES]
    return markdown(["run", "steps", *shares], rows)


def text() -> str:
    """Every stage on running text with one budget of time."""
    return benchmark_of_text.table(benchmark("text")["rows"])


def sampling() -> str:
    """Tokens a second of one text, by size, beside nanoGPT and transformers."""
    rows = benchmark("sampling")["nanogpt"]["rows"]
    sizes = list(dict.fromkeys(row["size"] for row in rows))
    named = {
        "nanoGPT": ("nanoGPT", False), "transformers": ("transformers", False),
        "ours, the same network": ("rungs", False), "ours, compiled": ("rungs", True),
    }
    table = []
    for name, (model, compiled) in named.items():
        group = [row for row in rows if (row["model"], row["compiled"]) == (model, compiled)
                 and (row["arch"], row["dtype"]) == ("gpt2", "float32")]
        if compiled:
            seconds = ", ".join(f"{row['warm_up_seconds']:.0f}" for row in group)
            name += f" (in {seconds} s)"
        table.append([name, *(pace(row, number == 0) for number, row in enumerate(group))])
    return markdown(["tokens a second", *sizes], table)


def sorting() -> str:
    """Finetuning to sort, beside its baselines."""
    return benchmark_of_finetuning.table(benchmark("finetune")["rows"])


def tunings() -> str:
    """What learns, and what that costs."""
    return benchmark_of_tunings.table(benchmark("tunings")["rows"])


def instructions() -> str:
    """Following instructions: the whole chain."""
    return benchmark_of_instructions.table(benchmark("instruct")["rows"])


def string_tasks() -> str:
    """Exact answers to every string task, over the seeds of the chain."""
    rows = benchmark_of_instructions.chosen(benchmark("instruct")["rows"])
    kinds = {"strings_seen": "as trained on", "strings_unseen": "in other phrasings"}
    table = [[task, *(f"{sum(row[kind][task] for row in rows) / len(rows):.2f}" for kind in kinds)]
             for task in rows[0]["strings_seen"]]
    return markdown(["task, on unseen words", *kinds.values()], table)


def answers() -> str:
    """Some answers of the first seed, to questions and string tasks."""
    row = benchmark_of_instructions.chosen(benchmark("instruct")["rows"])[0]
    table = [[entry[key].replace("|", "\\|").replace("\n", " ")
              for key in ("prompt", "expected", "greedy")]
             for entry in row["shown"] if entry["kind"] != "tale"]
    return markdown(["asked", "right", "said"], table)


def pace(row: dict, first: bool) -> str:
    """Tokens a second, and how many times nanoGPT's these are."""
    speed, ratio = row["per_second"], row["ratio"]
    said = f"{speed:,.0f}" if speed > 100 else f"{speed:.1f}"
    if row["model"] == "nanoGPT":
        return said
    times = f"{ratio:.0f}" if ratio > 10 else f"{ratio:.1f}"
    return f"{said} ({times}{' times' if first else ''})"


TABLES: dict[str, Callable[[], str]] = {
    function.__name__: function
    for function in (rungs, peers, ladder, without_torch, nano, race, baby, floors, pieces,
                     growth, expected, text, sampling, sorting, tunings, instructions, string_tasks,
                     answers)
}
