"""Synthetic loss curves whose right diagnosis is known.

Losses are fractions of the loss of guessing, ln(num_classes), until the rows are made.
The curves are Hill functions, logistic curves, stairs and powers, under correlated
noise with heavy tails, spikes and gaps. They were written before there was a threshold;
the thresholds of `dwsep_jax.diagnose` were set on others, exponentials under Gaussian
noise.
"""

from typing import NamedTuple

import numpy as np

VERDICTS = ("overfitting", "underfitting", "well_fitted", "still_improving", "diverged")


class Curve(NamedTuple):
    """The right verdict on a run, its rows, and the number of classes."""

    verdict: str
    rows: list[dict]
    num_classes: int


def sample(count: int, seed: int) -> list[Curve]:
    """Return `count` curves, as many of each verdict."""
    rng = np.random.default_rng(seed)
    return [make_curve(VERDICTS[i % len(VERDICTS)], rng) for i in range(count)]


def make_rows(train, val, train_error, val_error, num_classes) -> list[dict]:
    """Return rows of metrics.jsonl from fractions of the loss and error of guessing."""
    chance, guess = np.log(num_classes), 1 - 1 / num_classes
    columns = {
        "train_eval_loss": chance * np.maximum(train, 1e-6),
        "train_eval_accuracy": 1 - guess * np.clip(train_error, 0, 1),
        "val_loss": chance * np.maximum(val, 1e-6),
        "val_accuracy": 1 - guess * np.clip(val_error, 0, 1),
        "learning_rate": np.ones(len(train)),
    }
    return [
        {"epoch": i + 1, **{name: float(v[i]) for name, v in columns.items()}}
        for i in range(len(train))
    ]


def _draw_length(rng):
    return round(np.exp(rng.uniform(np.log(5), np.log(200))))


def _hill(t, rng, low, high):
    return 1 / (1 + (t / rng.uniform(low, high)) ** rng.uniform(3, 6))


def _settled(t, rng):
    """Return a fall from 1 that is over well before the end."""
    kind = rng.integers(4)
    if kind == 0:
        return _hill(t, rng, 0.08, 0.2)
    if kind == 1:
        slope = rng.uniform(15, 40)
        return 1 / (1 + np.exp(slope * (t - rng.uniform(0.1, 0.4))))
    if kind == 2:  # two steps of the learning rate, at a half and at three quarters
        stairs = np.where(t < 0.5, 0.3, np.where(t < 0.75, 0.06, 0.0))
        return np.maximum(stairs, 1 / (1 + (t / 0.08) ** 2) - 0.05 * t)
    s = np.clip(t / rng.uniform(0.5, 0.85), 0, 1)  # a rate that decays to zero
    return 1 - s * s * (3 - 2 * s)


def _falling(t, rng):
    """Return a fall from 1 that is under way at the end."""
    if rng.random() < 0.5:
        power = rng.uniform(0.5, 1.2)
        scale = rng.uniform(0.15, 0.7) ** (-1 / power) - 1  # is at 0.15 to 0.7 now
        return (1 + scale * t) ** -power
    slope = rng.uniform(3, 8)
    return 1 / (1 + np.exp(slope * (t - rng.uniform(0.6, 1.0))))


def make_curve(verdict: str, rng: np.random.Generator) -> Curve:
    """Return a run that deserves the verdict."""
    n, num_classes = _draw_length(rng), int(rng.choice([4, 10, 10, 50, 100]))
    t = np.arange(1, n + 1) / n
    fall = _falling(t, rng) if verdict == "still_improving" else _settled(t, rng)
    floor, gap, doubt = rng.uniform(0.005, 0.1), rng.uniform(0, 0.05), np.zeros(n)
    if verdict == "underfitting":
        floor = rng.uniform(0.4, 1.0)
        if rng.random() < 0.3:  # creeps along a straight line
            fall, floor = 1 - rng.uniform(0.02, 0.1) * t, 0.0
    elif verdict == "overfitting":
        mode = rng.integers(3)
        floor = rng.uniform(0.0, 0.04)
        gap = rng.uniform(0.2, 0.6) if mode == 0 else rng.uniform(0.05, 0.35)
        turn = rng.uniform(0.15, 0.5)
        rise = np.log(np.maximum(t / turn, 1)) / np.log(1 / turn)
        rise *= 0.0 if mode == 0 else max(0.08, rng.uniform(0.3, 2.0) * gap)
        doubt = rise if mode == 1 else np.zeros(n)  # loss without mistakes
        gap = gap + (rise if mode == 2 else 0.0)
    train = floor + (1 - floor) * fall
    val = train + gap * (1 - fall)
    if verdict == "diverged":
        train, val = _blow_up(t, train, val, rng)
    noise = _draw_noise(n, rng)
    train, doubt, val = train * noise[0], doubt * noise[1], val * noise[1]
    train_error, val_error = (np.expm1(0.5 * x) / np.expm1(0.5) for x in (train, val))
    rows = make_rows(train, val + doubt, train_error, val_error, num_classes)
    return Curve(verdict, rows, num_classes)


def _blow_up(t, train, val, rng):
    """Let the loss leap up at some epoch, or grow like a power from there on."""
    last = len(t) - 1
    start = rng.integers(max(1, round(0.2 * last)), max(2, round(0.95 * last)) + 1)
    start = min(start, last)
    top = rng.uniform(1.0, 5.0)
    if rng.random() < 0.5:
        rise = np.where(np.arange(len(t)) >= start, top, 0.0)
    else:
        passed = np.clip(np.arange(len(t)) - start + 1, 0, None)
        rise = top * (passed / passed[-1]) ** rng.uniform(0.3, 3)
    return np.maximum(train, rise), np.maximum(val, rise * rng.uniform(1.0, 1.2))


def _draw_noise(n, rng):
    """Return factors (2, n): noise with a memory and heavy tails, and spikes early."""
    memory, size = rng.uniform(0, 0.5), rng.uniform(0.005, 0.04)
    shocks = np.clip(rng.standard_t(4, (2, n)), -5, 5) * size * np.sqrt(1 - memory**2)
    noise = np.zeros((2, n))
    for i in range(n):
        noise[:, i] = memory * noise[:, i - 1] + shocks[:, i]
    early = np.arange(n) < 0.7 * n
    spikes = np.where((rng.random(n) < 0.03) & early, rng.uniform(1.5, 3, n), 1.0)
    return np.exp(noise) * spikes
