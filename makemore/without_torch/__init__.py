"""The first two stages without PyTorch, and the pieces that every stage is made of.

    bigram, mlp       the stages, every gradient by hand
    activations, losses, norms, initialisation, optimizers, schedules       the pieces
    compare           which piece does what: python -m makemore compare --vary=activation

Nothing here imports torch.
"""
