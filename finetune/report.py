"""What a run that sorts texts has reached, for people: tables, the confusion matrix, samples."""

import csv
import io
from pathlib import Path

import numpy as np

from data import runs

from . import tasks

LABELS = 30  # a confusion matrix of more is not drawn or printed whole
PAIRS = 20  # of labels that are printed instead
LONGEST = 30  # characters of a label beside the plot


def table(rows: dict[str, dict]) -> str:
    """accuracy and macro F1 of each row, in percent, with 95% intervals."""
    def cell(row: dict, name: str) -> str:
        low, high = row[f"{name}_interval"]
        return f"{row[name]:.3f} ({low:.3f} to {high:.3f})"

    width = max(map(len, rows))
    lines = [f"{'on test, 95% intervals':<{width}}  {'accuracy':<26}  macro F1"]
    for name, row in rows.items():
        lines.append(f"{name:<{width}}  {cell(row, 'accuracy'):<26}  {cell(row, 'macro_f1')}")
    return "\n".join(lines)


def forgetting(before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return "loss on the pretraining text: not to be had, for the text is not"
    return (f"loss on the pretraining text, nats per token: {before:.4f} before, {after:.4f} after "
            "finetuning")


def confused(matrix: np.ndarray, task: tasks.Task) -> str:
    """The confusion matrix as a table: a row for each true label; of many labels the pairs that
    were most often confused."""
    if len(task.labels) > LABELS:
        wrong = [(-n, task.labels[i], task.labels[j])
                 for (i, j), n in np.ndenumerate(matrix) if n and i != j]
        shown = sorted(wrong)[:PAIRS]
        head = (f"of {len(task.labels)} labels only the {len(shown)} pairs that were most often "
                f"confused, of {len(wrong)}; all are in confusion.csv")
        return "\n".join([head, *(f"{-n:>6} times {right} was taken for {taken}"
                                  for n, right, taken in shown)])
    width = max(map(len, task.labels))
    size = max(4, len(str(matrix.max())))
    head = " ".join(label[:size].rjust(size) for label in task.labels)
    lines = ["rows: the right label; columns: what it was taken for", " " * width + " " + head]
    for label, row in zip(task.labels, matrix):
        lines.append(f"{label:<{width}} " + " ".join(f"{n:>{size}}" if n else
                                                     "·".rjust(size) for n in row))
    return "\n".join(lines)


def as_csv(matrix: np.ndarray, labels: list[str]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["right \\ taken for", *labels])
    writer.writerows([label, *row] for label, row in zip(labels, matrix.tolist()))
    return buffer.getvalue()


def plot_confusion(matrix: np.ndarray, task: tasks.Task, run: Path) -> None:
    """confusion.png: each row in shares of its label; of many labels those that were most often
    confused with others."""
    labels, title = task.labels, run.name
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    if len(labels) > LABELS:
        wrong = matrix.sum(0) + matrix.sum(1) - 2 * np.diag(matrix)
        kept = np.sort(np.argsort(-wrong, kind="stable")[:LABELS])
        labels, title = [labels[i] for i in kept], f"{title}: {LABELS} of {len(labels)} labels"
        matrix, shares = matrix[np.ix_(kept, kept)], shares[np.ix_(kept, kept)]
    side = max(4.5, 0.32 * len(labels) + 2)
    figure = runs.new_figure(side, side)
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    places = range(len(labels))
    shown = [label[:LONGEST].replace("$", r"\$") for label in labels]
    axes.set_xticks(places, shown, rotation=90)
    axes.set_yticks(places, shown)
    axes.set(xlabel="taken for", ylabel="right label")
    for i, j in np.argwhere(matrix):
        color = "white" if shares[i, j] > 0.5 else "black"
        axes.text(j, i, matrix[i, j], ha="center", va="center", fontsize=7, color=color)
    axes.set_title(title, parse_math=False)
    runs.save_figure(figure, run / "confusion.png")


def samples(task: tasks.Task, found: np.ndarray, number: int = 20) -> str:
    """Some test texts, what they were taken for, and what is right."""
    lines = []
    for example, row in list(zip(task.splits["test"], found))[:number]:
        label = task.labels[int(row.argmax())]
        mark = "" if label in example.labels else f"  (right: {', '.join(example.labels)})"
        lines.append(f"{row.max():4.0%} {label}{mark}: {' '.join(example.text.split())[:60]}")
    return "\n".join(lines) + "\n"
