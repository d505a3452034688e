"""Learning-rate schedules: the share of the peak rate at step 0, 1, ... of a run.

A function of (step, steps, warmup): never 0, 1 at its peak. Warm-up, where there is one, climbs in
equal parts over the first steps, while the averages of an optimizer are still poor.
"""

import math

FINAL = 0.01  # of the peak, where a decay ends
COOLDOWN = 0.2  # of the steps, the last ones: the decay of warm-up-stable-decay


def constant(step, steps, warmup=0):
    """Always the peak. For a first look, and for a loss that is far from its end."""
    return 1.0


def step_down(step, steps, warmup=0):
    """A tenth after half of the steps, a hundredth after three quarters. For SGD with momentum, as
    in the classical image networks."""
    return 1.0 if step < 0.5 * steps else 0.1 if step < 0.75 * steps else FINAL


def cosine(step, steps, warmup=0):
    """Warm-up, then half a cosine down to FINAL (Loshchilov & Hutter 2017). The standard where the
    number of steps is known beforehand."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, steps - 1 - warmup)
    return FINAL + (1 - FINAL) * (1 + math.cos(math.pi * min(1.0, done))) / 2


def warmup_stable_decay(step, steps, warmup=0):
    """Warm-up, the peak, then a straight line down to FINAL over the last fifth (Hu et al. 2024).
    Where a run may go on: everything before the decay can be shared."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    begin = max(warmup, min(round((1 - COOLDOWN) * steps), steps - 2))
    done = (step - begin) / max(1, steps - 1 - begin)
    return 1.0 - (1 - FINAL) * min(1.0, max(0.0, done))


SCHEDULES = {
    "constant": constant, "step": step_down, "cosine": cosine, "wsd": warmup_stable_decay,
}
