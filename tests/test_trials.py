"""trials.csv, written and read back, and the lines of its damages."""

import re

import pytest

from dwsep_jax.errors import UserError
from dwsep_jax.space import parse_space
from dwsep_jax.trials import Trial, latest, read_trials, write_trials

SPACE = ["flip=true|false", "block_sizes=3,3|6,6", "reduction=0.5|1", "mixup=0..1"]
SPACE += ["growth_rate=8..24", "learning_rate=x0.1..x10 log"]
AXES = parse_space(SPACE)
SETTINGS = {"flip": False, "block_sizes": "3,3", "reduction": 1.0, "growth_rate": 9}
SETTINGS |= {"mixup": 1 / 3, "learning_rate": 0.1, "learning_rate_factor": 0.7}
TRIALS = [
    Trial(0, "failed", None, 1, 1.5, None, 'of "it", <b>|', SETTINGS),
    Trial(1, "complete", 0.9, 12, 3.25, 0, None, SETTINGS),
    Trial(2, "waiting", None, 0, None, None, None, dict.fromkeys(SETTINGS)),
]


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "trials.csv"
    write_trials(path, TRIALS[::-1], AXES)
    assert read_trials(path, AXES) == TRIALS
    assert path.read_text().splitlines()[0] == (
        "number,state,value,epochs,flip,block_sizes,reduction,mixup,growth_rate,"
        "learning_rate,learning_rate_factor,seconds,retry_of,note,crc32"
    )


def test_the_last_of_several_attempts_counts():
    assert latest(TRIALS) == TRIALS[1:]


HEADER = "number,state,value,epochs,mixup,seconds,retry_of,note\n"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "there is no trials.csv yet; the command of the sweep writes it"),
        ("", "it lacks the column number"),
        (HEADER.replace("note", "note,more"), "it has the unknown column more"),
        ("number,value\n1,2\n", "it lacks the column state"),
        (HEADER.replace("mixup", "cutout"), "it lacks the column mixup"),
        (HEADER + "1,complete,0.5\n", "line 2: it has more or fewer cells than the he"),
        (HEADER + "x,complete,0.5,1,0,1,,\n", "line 2: number cannot be 'x'"),
        (HEADER + ",complete,0.5,1,0,1,,\n", "line 2: number cannot be ''"),
        (HEADER + "1,done,0.5,1,0,1,,\n", "line 2: state cannot be 'done'"),
        (HEADER + "1,complete,nan,1,0,1,,\n", "line 2: value cannot be 'nan'"),
        (HEADER + "1,complete,98.5,1,0,1,,\n", "line 2: value cannot be '98.5'"),
        (HEADER + "1,complete,0.5,1,high,1,,\n", "line 2: mixup cannot be 'high'"),
        (HEADER + "1,complete,0.5,1,0,1,-1,\n", "line 2: retry_of cannot be '-1'"),
        (HEADER + '1,complete,0.5,1,0,1,,"a\n', "unexpected end of data"),
        (b"\xff\xfe", "can't decode"),
    ],
)
def test_a_damaged_table_is_one_line_that_says_where(tmp_path, content, problem):
    path = tmp_path / "trials.csv"
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        problem = re.escape(problem)
        problem = rf"{path} is damaged \(.*{problem}.*; repeat the command of the sweep"
    with pytest.raises(UserError, match=problem) as raised:
        read_trials(path, parse_space(["mixup=0..1"]))
    assert "\n" not in str(raised.value)
