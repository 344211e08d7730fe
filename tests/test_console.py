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
def test_the_bar_is_shown_on_a_terminal_if_it_is_wanted(
    screen, is_terminal, progress, shown
):
    output = screen(is_terminal)
    config = tiny.make_config(progress=progress, num_epochs=7)
    with console.EpochProgress(config, steps_per_epoch=3) as bar:
        assert list(bar.steps(epoch=1)) == [0, 1, 2]
        bar._bar.refresh()
    assert ("epoch 2/7" in output.getvalue()) == shown
    assert ("3/3 steps" in output.getvalue()) == shown


def test_text_is_printed_as_it_is(screen):
    output = screen(False)
    console.say("runs/a:100:b [red]")
    console.print_table("Title", ["class", "images"], [["[/x]", 12345]])
    text = output.getvalue()
    assert "runs/a:100:b [red]" in text
    assert "[/x]" in text
    assert "12,345" in text


def test_long_lines_and_tables_are_not_cut(screen):
    output = screen(False)
    console.say("x" * 200)
    console.print_table("Title", ["y" * 60, "z" * 60], [["a", "b"]])
    assert "x" * 200 in output.getvalue()
    assert "z" * 60 in output.getvalue()
