"""What is printed, on a terminal and off it."""

import io

import pytest

from dwsep_jax import console
from tests import tiny


@pytest.fixture
def screen(monkeypatch):
    """Return a function that makes a terminal, or a file, and what it has received."""

    def make(is_terminal):
        output = io.StringIO()
        fake = console._make_console(file=output, force_terminal=is_terminal, width=80)
        monkeypatch.setattr(console, "_console", fake)
        return output

    return make


@pytest.mark.parametrize(
    ("is_terminal", "progress", "shown"),
    [(True, True, True), (True, False, False), (False, True, False)],
)
def test_the_bar_is_shown_on_a_terminal_if_wanted(screen, is_terminal, progress, shown):
    output = screen(is_terminal)
    config = tiny.make_config(progress=progress, num_epochs=7)
    with console.EpochProgress(config, steps_per_epoch=3) as bar:
        bar.start_epoch(0)
        bar.advance_steps(3)
        bar.start_epoch(1)
        bar.advance_steps(2)
        bar.advance_steps(1)
        bar.refresh()
    assert ("epoch 2/7" in output.getvalue()) == shown
    assert ("3/3 steps" in output.getvalue()) == shown


def test_text_is_printed_as_it_is(screen):
    output = screen(False)
    line, names = "runs/a:100:b [red]" + "x" * 200, ["y" * 60, "z" * 60]
    console.say(line)
    console.print_table("Title", names, [["[/x]", 12345]])
    assert all(text in output.getvalue() for text in (line, *names, "[/x]", "12,345"))


ROW = dict(epoch=3, train_loss=0.5, train_accuracy=0.8, val_loss=0.25, val_accuracy=0.9)


def test_the_line_of_an_epoch():
    line = console.format_epoch(ROW | {"images_per_second": 1234.5}, 100, 3725.0)
    assert line == (
        "epoch   3/100  train loss 0.5000 accuracy 80.00%  validation loss 0.2500 "
        "accuracy 90.00%  1,234 images/s  1 h 02 min left"
    )
    averaged = ROW | {"images_per_second": 1.0, "ema_val_accuracy": 0.95}
    line = console.format_epoch(averaged, 3, 0.0)
    assert "90.00% (95.00% averaged)  1 images" in line


def test_durations_are_written_for_people():
    texts = {0.4: "0 s", 59.4: "59 s", 59.6: "1 min 00 s", 725.0: "12 min 05 s"}
    texts |= {3599.7: "1 h 00 min", 360000.0: "100 h 00 min"}
    assert {seconds: console.format_seconds(seconds) for seconds in texts} == texts


def test_what_is_logged_is_not_shown_but_for_the_bar(screen, tmp_path):
    output = screen(True)
    with console.logged(tmp_path / "train.log"):
        console.say("a line that is long enough to be wrapped: " + 60 * "x")
        console.print_table("title", ["name", "n"], [["row", 12345]])
        with console.EpochProgress(tiny.make_config(), steps_per_epoch=3) as bar:
            bar.start_epoch(0)
            bar.refresh()
    log = (tmp_path / "train.log").read_text()
    assert log.startswith("a line that is long enough to be wrapped: " + 60 * "x")
    assert "12,345" in log
    assert "\x1b" not in log
    shown = output.getvalue()
    assert "epoch 1/2" in shown
    assert "row" not in shown
    with console.logged(tmp_path / "train.log"):
        console.say("more")
    assert (tmp_path / "train.log").read_text() == log + "more\n"
    console.say("after")
    assert output.getvalue().endswith("after\n")
