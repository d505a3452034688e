"""Named recipes: each a plain list of flags, as they could stand on the command line.

    python train.py --recipe=quick-gru                         seconds instead of a minute
    python train.py --recipe=shakespeare-nano                  as it stands here
    python train.py --recipe=shakespeare-nano --width=256      but wider

A bare --model=gpt takes "names" for lines and "tales" for text. The quick ones are of the stages
on names: as few steps as take those that makemore has too to its loss after 10,000 of its own, and
cnn and lstm near the others (so without dropout, which pays later); what they leave out is that of
the stage. Chosen on validation data.
"""

RECIPES = {
    "quick-bigram": dict(
        model="bigram", data="names", steps=200, eval_every=50, batch_size=512, lr=0.2,
    ),
    "quick-mlp": dict(
        model="mlp", data="names", steps=250, eval_every=50, lr=0.02, dropout=0.0,
    ),
    "quick-cnn": dict(
        model="cnn", data="names", steps=250, eval_every=50, lr=0.02, dropout=0.0,
    ),
    "quick-rnn": dict(
        model="rnn", data="names", steps=150, eval_every=50, lr=0.02, dropout=0.0,
    ),
    "quick-lstm": dict(
        model="lstm", data="names", steps=200, eval_every=50, lr=0.03, dropout=0.0,
    ),
    "quick-gru": dict(
        model="gru", data="names", steps=200, eval_every=50, lr=0.03, dropout=0.0,
    ),
    "quick-transformer": dict(
        model="transformer", data="names", steps=600, eval_every=150, dropout=0.0,
    ),
    "names": dict(
        model="gpt", data="names", arch="modern", layers=2, heads=4, width=96, dropout=0.1,
        steps=2000, batch_size=128, lr=0.005, weight_decay=0.3,
    ),
    "tales": dict(
        model="gpt", data="tales", arch="modern", size="nano", steps=2000, batch_size=32, lr=0.01,
    ),
    "shakespeare-nano": dict(
        model="gpt", data="shakespeare", arch="modern", size="nano", conv=4, steps=80,
        batch_size=24, lr=0.02, momentum=0.85, embedding_lr=5.0, eval_every=80,
    ),
    "shakespeare-baby": dict(
        model="gpt", data="shakespeare", arch="modern", size="baby", dropout=0.2, steps=1000,
        batch_size=64, lr=0.01, weight_decay=0.1, dtype="bfloat16", eval_every=100,
    ),
    "shakespeare-baby-cpu": dict(
        model="gpt", data="shakespeare", arch="modern", size="baby", dropout=0.2, steps=900,
        batch_size=16, lr=0.01, momentum=0.9, embedding_lr=5.0, weight_decay=0.1, dtype="bfloat16",
        eval_every=450,
    ),
    "gpt2": dict(
        model="gpt", data="tales", arch="gpt2", size="gpt2", tokenizer="gpt2", steps=1000,
        batch_size=32, accumulate=8, lr=0.0006, optimizer="adamw", weight_decay=0.1,
        dtype="bfloat16", compile=True,
    ),
}
