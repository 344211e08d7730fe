"""Time to accuracy, against numbers worked out by hand."""

import pytest

from dwsep_jax.report.files import Comparison, Run
from dwsep_jax.report.time_to_accuracy import show_time_to_accuracy

TIMES = "\N{MULTIPLICATION SIGN}"
# Validation accuracies of each epoch, in per cent, of the seeds of each variant.
CURVES = {
    "separable": [[50, 81, 79, 88, 91], [60, 70, 85, 90, 90.9]],
    "standard": [[70, 90, 91], [80, 88, 92]],
}
RATES = {"separable": 1000.0, "standard": 400.0}


def make_rows(accuracies, name="val_accuracy"):
    row = {"val_accuracy": 0.0}
    return [
        row | {"epoch": epoch, "step": 10 * epoch, name: accuracy / 100}
        for epoch, accuracy in enumerate(accuracies, start=1)
    ]


def show(rates, curves=CURVES, name="val_accuracy"):
    """Return the blocks of runs of 10 steps of 40 images an epoch."""
    runs = {}
    for variant, seeds in curves.items():
        rate = rates[variant]
        train = {"batch_size": 40, "images_per_second": rate}
        efficiency = rate and {"train": train}
        runs[variant] = [
            Run(None, None, make_rows(seed, name), None, [], None, None, efficiency)
            for seed in seeds
        ]
    content = {"main": "separable", "baseline": "standard"}
    return show_time_to_accuracy(Comparison(None, content, None, runs))


@pytest.mark.parametrize("name", ["val_accuracy", "ema_val_accuracy"])
def test_epochs_and_seconds_are_those_of_the_curves(name):
    table, text = show(RATES, name=name)
    # Every run reaches 90.9 %, and so 90 %; 4.5 epochs are 4 and 5 ones.
    assert table.caption == "To 90 % on validation"
    assert table.columns == ["variant", "seconds per epoch", "epochs", "seconds"]
    assert table.rows == [
        ["separable", "0.40", "4.5", "2"],
        ["standard", "1.00", "2.5", "2"],
    ]
    # 4.5 / 2.5 of the epochs, and 4.5 * 0.4 / 2.5 of the time.
    assert text == (
        f"To 90 %, separable takes 1.80{TIMES} the epochs and 0.72{TIMES} the time of "
        "standard: what it saves per step is saved in the end."
    )


@pytest.mark.parametrize(
    ("rate", "outcome"),
    [
        (700.0, "it takes as long to the same accuracy"),  # 1.03 times as long
        (600.0, "it takes longer to the same accuracy"),
    ],
)
def test_the_conclusion_follows_from_the_times(rate, outcome):
    assert show(RATES | {"separable": rate})[1].endswith(f": {outcome}.")


def test_what_is_unknown_is_left_out():
    (table,) = show(RATES | {"standard": None})
    dash = "\N{EN DASH}"
    assert table.rows[1] == ["standard", dash, "2.5", dash]
    for curves in ({"separable": [], "standard": []}, {"standard": [[0.5]]}):
        (text,) = show(RATES, curves)
        assert text.startswith("Left out: ")
