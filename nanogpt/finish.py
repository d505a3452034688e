"""The end of a run: its best checkpoint is judged, and what came of it put into the run folder."""

from pathlib import Path

import sample
from data import runs

from .estimate import Estimate, in_words, most_used
from .evaluate import evaluate_splits
from .processes import load_weights


def finish(
    model, tokenizer, dataset, config, run: Path, machine, processes, progress, expected: Estimate
) -> None:
    """Judge the best checkpoint, and put result.json and its samples into the run folder."""
    processes.wait()
    load_weights(model, sample.weights_of(runs.load_checkpoint(run / "best.pt")))
    model.eval()
    # at step 0 a part of a text was judged
    known = progress.best_loss if progress.best_step or not config.steps else None
    measured = evaluate_splits(model, tokenizer, dataset, config.block_size, machine, processes,
                               known)
    result = {
        "model": config.model,
        "data": dataset.name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": progress.step,
        "best_step": progress.best_step,
        "tokens": progress.tokens,
        "seconds": round(progress.seconds, 1),
        "tokens_per_second": progress.tokens_per_second,
        "flops_per_token": round(expected.flops),
        "mfu": round(progress.tokens_per_second * expected.mfu, 4),
        "memory": most_used(machine),
        "memory_expected": expected.memory,
        **measured,
        "seed": config.seed,
        "device": machine.device,
        "dtype": machine.dtype,
    }
    training = set(dataset.splits["train"]) if dataset.kind == "lines" else None
    num, length = sample.defaults(dataset.kind, config.block_size)
    texts = sample.texts(model, tokenizer, "", num, length, dataset.separated)
    report = sample.report(texts, training)
    if not processes.first:
        return
    runs.write_json(run / "result.json", result)
    runs.write(run / "samples.txt", report)
    runs.plot(run)
    losses = [(split, measured[f"{split}_loss"]) for split in ("train", "val", "test")]
    said = ", ".join(f"{split} {loss:.4f}" for split, loss in losses if loss is not None)
    print(f"loss of the best checkpoint (step {progress.best_step}): {said} nats per token")
    judged = "val" if measured["test_loss"] is None else "test"
    memory = f"{in_words(result['memory'])} of memory ({in_words(expected.memory)} expected)"
    bits = f"{measured['bits_per_char']:.3f}, per byte {measured['bits_per_byte']:.3f}"
    print(f"bits per character on {judged}: {bits}; {memory}\n\n{report}")
    print(f"In {run}: loss.png, samples.txt, result.json. More: python sample.py --run={run}")
