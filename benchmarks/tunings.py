"""What learns when a run is finetuned: all weights, the head, the last layers, LoRA; with replay.

    python -m benchmarks.tunings --from=RUN [--task topic] [--steps N]

One task, one seed, each a process of its own: accuracy, trained parameters, the peak of the memory
of the whole process, seconds, and the loss on the pretraining text before and after.
"""

import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.ladder import ROOT
from data import cli, runs

WAYS = {
    "all": [],
    "all, layer-wise rates": ["--lr-decay=0.7"],
    "all, replay": ["--replay=0.25"],
    "last layer": ["--tune=last", "--last=1"],
    "head": ["--tune=head"],
    "LoRA, rank 8": ["--tune=lora", "--rank=8"],
    "LoRA, rank 2, of attention": ["--tune=lora", "--rank=2", "--matrices=qkv,out"],
    "random first weights": None,  # all of them learn; a baseline of every run of finetune.classify
}


def measured(command: list[str], log: Path) -> tuple[float, int | None]:
    """Seconds and peak memory in bytes (None on Windows) of a process. ValueError: it failed."""
    began = time.monotonic()
    with open(log, "wb") as said:
        process = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT)
        if not hasattr(os, "wait4"):
            code, peak = process.wait(), None
        else:
            _, status, usage = os.wait4(process.pid, 0)
            code = process.returncode = os.waitstatus_to_exitcode(status)
            peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if code:
        raise ValueError(f"{' '.join(command)} failed: {log.read_text('utf-8')[-500:]}")
    return time.monotonic() - began, peak


def table(rows: list[dict]) -> str:
    lines = ["| what learns | trained parameters | accuracy | macro F1 | pretraining loss, before "
             "and after | seconds | MiB |", "| --- " * 7 + "|"]
    for row in rows:
        low, high = row["accuracy_interval"]
        losses = [row[f"pretraining_loss_{when}"] for when in ("before", "after")]
        shown = " ".join("-" if loss is None else f"{loss:.4f}" for loss in losses)
        memory = "-" if row["peak"] is None else f"{row['peak'] / 2**20:,.0f}"
        seconds = "-" if row["seconds"] is None else f"{row['seconds']:.0f}"
        lines.append(f"| {row['name']} | {row['trained_parameters']:,} | {row['accuracy']:.3f} "
                     f"({low:.3f} to {high:.3f}) | {row['macro_f1']:.3f} | {shown} | {seconds} | "
                     f"{memory} |")
    return "\n".join(lines)


def main() -> None:
    parser = cli.Parser(prog="python -m benchmarks.tunings", description=__doc__)
    cli.add(parser, "from", "the pretrained run", Path)
    cli.add(parser, "task", "topic, lesson or origin (default topic)", str)
    cli.add(parser, "steps", "of each (default: as of finetune.classify)")
    cli.add(parser, "batch_size", "(default: as of finetune.classify)")
    cli.add(parser, "block_size", "(default: as of finetune.classify)")
    cli.add(parser, "out", "(default benchmarks/results/tunings.json)", Path)
    args = parser.parse_args()
    base = vars(args)["from"]
    if base is None:
        raise ValueError("name the pretrained run: --from=RUN.")
    task, rows = args.task or "topic", []
    flags = [f"--from={base.resolve()}", f"--task={task}", "--device=cpu"]
    for name in ("steps", "batch_size", "block_size"):
        if getattr(args, name):
            flags.append(f"{cli.flag(name)}={getattr(args, name)}")
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, more) in enumerate(WAYS.items()):
            run = Path(folder, str(number))
            one = ["--baselines"] if more is None else ["--no-baselines", *more]
            command = [sys.executable, "-m", "finetune.classify", *flags, *one, f"--out={run}"]
            _, peak = measured(command, Path(folder, "log"))
            result = json.loads((run / "result.json").read_text("utf-8"))
            seconds = result["seconds"]  # of training and evaluating
            if more is None:
                seconds = peak = None  # they are those of two networks
                result |= result["baselines"][name] | {
                    "pretraining_loss_before": None, "pretraining_loss_after": None}
            kept = ("trained_parameters", "accuracy", "accuracy_interval", "macro_f1",
                    "macro_f1_interval", "steps", "best_step", "pretraining_loss_before",
                    "pretraining_loss_after")
            rows.append({"name": name, **{key: result.get(key) for key in kept},
                         "seconds": seconds, "peak": peak})
            print(table(rows[-1:]).splitlines()[-1], flush=True)
    about = {"date": datetime.date.today().isoformat(), "environment": runs.environment(),
             "task": task, "flags": flags[1:]}
    out = args.out or ROOT / "benchmarks/results/tunings.json"
    runs.write_json(out, about | {"rows": rows})
    print(table(rows))


if __name__ == "__main__":
    cli.run(main)
