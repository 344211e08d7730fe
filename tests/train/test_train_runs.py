"""The runs of a comparison or a sweep; tests/test_compare.py trains them."""

from dwsep_jax.train.runs import Progress


def test_the_time_left_is_that_of_the_variants_to_come(capsys):
    progress = Progress(["a", "b", "a", "b", "b"])
    progress.finish("a", 10.0, "x")
    assert capsys.readouterr().out == "run 1/5  x  10 s, 40 s left\n"
    progress.finish("b", 20.0, "y")
    assert capsys.readouterr().out == "run 2/5  y  20 s, 50 s left\n"
    progress.finish("b", None, "z")
    assert capsys.readouterr().out == "run 3/5  z  was trained before\n"
