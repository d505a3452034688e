"""What finetune.classify takes where the user says nothing, by the texts; from validation data.
"""

from argparse import Namespace

from .labelled import POOLS, Encoded

EPOCHS, MOST = 14, 4000  # of the texts, and steps, at most
EARLY, DROPOUT, PATIENCE, LR = 0.5, 0.3, 5, 0.005  # the last of Muon
LITTLE = ("head", "lora")  # --tune where so little learns that
LITTLE_DROPOUT = 0.1  # is right: what stays cannot learn to do without a third
LONG = 64  # tokens of a text: from here on batches are smaller, and what follows is the default
LONG_POOL = "quarters"  # and nothing EARLY, for in a mean all tokens have their say
LONG_EPOCHS, LONG_LR, LONG_AVERAGE = 3, 0.001, 0.95  # a long text has much to be learned by heart
LONG_LITTLE_EPOCHS = 5  # of --tune=lora and head, which cannot learn as much of it so soon
LONG_PATIENCE = 10  # the loss rises from that of the fitted head before it falls
LONG_EMBEDDING_LR = 10.0  # with Muon: which words tell what is most of what there is to learn
LONG_LORA = "embedding", 32  # and its rank, where tokens are words or their parts
FITTED = 0.1  # share of the learning rate of a head that is fitted already


def are_long(texts: Encoded) -> bool:
    """Whether half of them are."""
    lengths = sorted(map(len, texts.sequences))
    return lengths[len(lengths) // 2] >= LONG


def training(train: Encoded, rows: int | None, optimizer: str, tune: str | None = None) -> dict:
    """Settings of the loop. rows: of a batch, if the user says so."""
    long = are_long(train)
    rows = rows or (16 if long else 64)
    times = (LONG_LITTLE_EPOCHS if tune in LITTLE else LONG_EPOCHS) if long else EPOCHS
    return dict(
        steps=min(MOST, max(100, times * -(-len(train.pairs) // max(rows, 1)))),
        batch_size=rows,
        embedding_lr=embedding_lr(train, optimizer),
        average=LONG_AVERAGE if long else 0.0,
        patience=LONG_PATIENCE if long else PATIENCE,
    )


def lr(train: Encoded) -> float:
    """Of Muon."""
    return LONG_LR if are_long(train) else LR


def embedding_lr(train: Encoded, optimizer: str) -> float:
    """Times the learning rate."""
    return LONG_EMBEDDING_LR if are_long(train) and optimizer == "muon" else 1.0


def lora(train: Encoded, args: Namespace, tokenizer: str) -> dict:
    """What gets LoRA, of what rank, and alpha twice that, where no matrices are named. A replay may
    need the embedding for its head, so there it stays as it is."""
    words = are_long(train) and tokenizer != "char"
    if args.tune != "lora" or args.matrices is not None or args.replay or not words:
        return {}
    matrices, rank = LONG_LORA
    rank = args.rank or rank
    return dict(matrices=matrices, rank=rank, alpha=2.0 * rank)


def dropout(tune: str | None) -> float:
    return LITTLE_DROPOUT if tune in LITTLE else DROPOUT


def pool(train: Encoded) -> str:
    """What a short text is about, its last token can tell; of a long one it knows little."""
    return LONG_POOL if are_long(train) else "last"


def early(asked: float | None, pool: str) -> float:
    """ValueError: a share that cannot be."""
    usual = 0.0 if POOLS[pool] else EARLY
    share = usual if asked is None else asked
    if not 0 <= share < 1:
        raise ValueError(f"--early must be at least 0 and below 1, not {share}.")
    return share
