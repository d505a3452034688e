"""A run that sorts texts, in use: it is loaded, and says what label a text has."""

from pathlib import Path

import numpy as np

import data
import nanogpt
import sample
from data import runs
from nanogpt.machine import Machine
from nanogpt.settings import restore_config

from .adapt import Tuning, adapt, merge
from .both import NGRAMS, Both
from .labelled import Classifier, ending, probabilities, sequence, shortened
from .pretrained import check_format, other_version
from .resumed import as_tuning, pool_of


def load_classifier(path: Path) -> tuple[Classifier, data.Tokenizer, dict]:
    """The classifier of a run, in eval, its tokenizer and its settings.

    ValueError: no such run, or one that is damaged or of another version.
    """
    checkpoint = runs.load_checkpoint(Path(path))
    saved = checkpoint["config"]
    if saved.get("finetune", {}).get("kind") != "classify":
        raise ValueError(f"{path} does not sort texts; finetune it to: "
                         f"python -m finetune.classify --from={path} --task=topic")
    check_format(saved)
    try:
        config = restore_config(saved)
        tokenizer = data.tokenizer_from_dict(checkpoint["tokenizer"])
        model = nanogpt.build(config.model, tokenizer.vocab_size, config.block_size, **config.sizes)
        labels = len(saved["finetune"]["labels"])
        classifier = Classifier(model, labels, pool=pool_of(saved["finetune"]))
        if not checkpoint.get("merged"):
            tuning = Tuning(**as_tuning(saved["finetune"]["tuning"]))
            adapt(model, tuning, speaks=False, special=bool(ending(config.model)))
        classifier.load_state_dict(sample.weights_of(checkpoint))
    except (KeyError, TypeError, RuntimeError) as error:
        raise other_version(path, error) from None
    merge(classifier)
    return classifier.eval(), tokenizer, saved


def load_ngrams(path: Path, saved: dict) -> Both | None:
    """The n-grams that were fitted beside a run with these settings, and may be asked with it; None
    where there are none.

    ValueError: they are damaged or of another version.
    """
    file = (path if path.is_dir() else path.parent) / NGRAMS
    if not file.is_file():
        return None
    try:
        both = Both.from_dict(runs.load_checkpoint(file))
        if both.regression.weights.shape[1] != len(saved["finetune"]["labels"]):
            raise ValueError("n-grams of other labels")
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise other_version(file, error) from None
    return both


def assign(
    classifier: Classifier, tokenizer: data.Tokenizer, saved: dict, text: str, machine: Machine,
    ngrams: Both | None = None,
) -> tuple[list[tuple[str, float]], list[str]]:
    """Every label with its probability, the likeliest first, and what the user should know.

    ngrams: to be asked too.
    """
    labels, size = saved["finetune"]["labels"], saved["block_size"]
    ids, unseen, lowered = sequence(text.strip(), tokenizer, saved["model"])
    notes = []
    if unseen:
        notes.append(f"{unseen} characters that the run has never seen are left out")
    if lowered:
        notes.append(f"{lowered} capitals that the run has never seen are read as small letters")
    if len(ids) > size:
        notes.append(f"the text has {len(ids) - size} tokens more than the block of {size}; they "
                     "are cut off at its end")
    if ngrams and notes:
        notes.append("that is what the network reads; the n-grams are of the whole text")
    found = probabilities(classifier, [shortened(ids, size, saved["model"])], machine)
    found = (ngrams.probabilities(found, [text.strip()]) if ngrams else found)[0]
    return [(labels[i], float(found[i])) for i in np.argsort(-found, kind="stable")], notes
