"""The rows of metrics.jsonl, and what they say."""

import pytest

from dwsep_jax import workdir
from dwsep_jax.errors import UserError


def rows_of(*accuracies):
    return [{"val_accuracy": accuracy} for accuracy in accuracies]


def test_rows_are_written_appended_and_replaced(tmp_path):
    path = tmp_path / "metrics.jsonl"
    workdir.write_rows(tmp_path, [])
    assert path.read_text() == ""
    workdir.append_row(tmp_path, {"epoch": 1})
    workdir.append_row(tmp_path, {"epoch": 2})
    both = path.read_text()
    first = '{"schema": 1, "epoch": 1, "crc32": 1407974562}\n'
    assert both == first + '{"schema": 1, "epoch": 2, "crc32": 2026286945}\n'
    workdir.write_rows(tmp_path, [{"epoch": 1}])
    assert path.read_text() == first
    before = path.stat().st_mtime_ns
    workdir.write_rows(tmp_path, [{"epoch": 1}])
    assert path.stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"metrics\.jsonl but no checkpoint"):
        workdir.write_rows(tmp_path, [])
    assert path.read_text()


def test_rows_with_a_flipped_bit_are_written_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    workdir.write_rows(tmp_path, [{"epoch": 1}])
    content = path.read_bytes()
    path.write_bytes(content[:5] + bytes([content[5] ^ 0x80]) + content[6:])
    workdir.write_rows(tmp_path, [{"epoch": 1}])
    assert path.read_bytes() == content


def test_the_score_is_that_of_the_weights_that_are_evaluated():
    assert workdir.score({"val_accuracy": 0.5}) == 0.5
    assert workdir.score({"val_accuracy": 0.5, "ema_val_accuracy": 0.6}) == 0.6


def test_the_weights_that_are_evaluated_are_those_that_decide():
    rows = [{"ema_val_accuracy": a, "val_accuracy": 0.1} for a in (0.5, 0.9, 0.6)]
    assert workdir.evaluated_row(rows, early_stopping=0) is rows[2]
    assert workdir.evaluated_row(rows, early_stopping=1) is rows[1]


def test_a_curve_is_settled_when_it_no_longer_rises():
    settled = [[0.5] * 4, [0.5, 0.4, 0.3, 0.2], [0.5, 0.509, 0.509, 0.509], [0.0] * 4]
    rising = [[], [0.5], [0.5] * 3, [0.5, 0.509, 0.511, 0.509]]
    # Small steps that add up to a change are one.
    rising += [[0.5, 0.506, 0.512, 0.518], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]]
    for accuracies in settled + rising:
        found = workdir.is_settled(rows_of(*accuracies), 3, min_change=0.01)
        assert found == (accuracies in settled), accuracies


def test_a_patience_of_zero_waits_for_ever():
    assert not workdir.is_settled(rows_of(*[0.5] * 1000), 0, min_change=0.01)


def test_the_time_left_goes_by_the_pace_of_this_process():
    rows = [{"elapsed_seconds": seconds} for seconds in (100.0, 200.0, 210.0, 220.0)]
    assert workdir.seconds_left(rows, num_before=2, num_epochs=10) == 60.0
    assert workdir.seconds_left(rows, num_before=0, num_epochs=4) == 0.0
    assert workdir.seconds_left(rows[:2], num_before=0, num_epochs=3) == 100.0
