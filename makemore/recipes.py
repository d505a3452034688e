"""How each stage is best trained: what the bare command does.

Chosen on validation data, for runs of about two minutes or less on two CPU cores. Sizes may stand
here too, where a kind of data wants others than the stage's own.
"""

RECIPES = {
    "lines": {
        "bigram": dict(steps=1000, batch_size=1024, lr=0.05),
        "mlp": dict(steps=2000, batch_size=128, lr=0.01),
        "cnn": dict(steps=2000, batch_size=128, lr=0.01, weight_decay=0.3),
        "rnn": dict(steps=2000, batch_size=128, lr=0.01, weight_decay=0.3),
        "lstm": dict(steps=1500, batch_size=128, lr=0.01, weight_decay=0.3),
        "gru": dict(steps=1500, batch_size=128, lr=0.01, weight_decay=0.3),
        "transformer": dict(steps=2000, batch_size=128, lr=0.01, weight_decay=0.3),
    },
    "text": {
        "bigram": dict(steps=1000, batch_size=64, lr=0.05),
        "mlp": dict(steps=2000, batch_size=32, lr=0.01, dropout=0.1),
        "cnn": dict(steps=1500, batch_size=32, lr=0.01, dropout=0.0, layers=6),
        "rnn": dict(steps=1500, batch_size=32, lr=0.01, dropout=0.0),
        "lstm": dict(steps=1000, batch_size=32, lr=0.01, dropout=0.0),
        "gru": dict(steps=1000, batch_size=32, lr=0.01, dropout=0.0),
        "transformer": dict(
            steps=1500, batch_size=32, lr=0.01, dropout=0.0, layers=4, width=64
        ),
    },
}

IN_NUMPY = {  # where the NumPy version is best trained otherwise
    "lines": {"mlp": dict(steps=1000, width=256, dropout=0.1)},
    "text": {},
}
