"""The progress of several runs."""

from dwsep_jax.train.runs import Progress


def test_the_time_left_is_that_of_the_remaining_runs(capsys):
    progress = Progress(["a", "b", "a", "b", "b"])
    for name, seconds, line in (
        ("a", 10.0, "run 1/5  x  10 s, 40 s left\n"),
        ("b", 20.0, "run 2/5  x  20 s, 50 s left\n"),
        ("b", None, "run 3/5  x  was trained before\n"),
    ):
        progress.finish(name, seconds, "x")
        assert capsys.readouterr().out == line
