"""Two processes with two CPU devices each share the batches of a run, over Gloo."""

import os
import pathlib
import signal
import socket
import subprocess
import sys

import pytest

from dwsep_jax import __main__, condense, launch
from dwsep_jax.train import loop
from dwsep_jax.workdir import read_json, read_rows
from tests import tiny

# Five steps an epoch.
OPTIONS = {"ema_decay": 0.9, "mixup": 0.2, "eval_batch_size": 6, "block_sizes": (1,)}
ROOT = pathlib.Path(__file__).parents[2]
CONFIG = f"""
from tests import tiny
def get_config():
    return tiny.make_config(**{OPTIONS})
"""
LOST = (
    "error: another process of this run was lost, which may have said why; the same "
    "command resumes\n"
)


def find_port():
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def start(workdir, number=0, at=0, slurm=False, fields=("", "")):
    """Run two processes; the second sends itself a signal. Return both when done."""
    config = workdir.parent / "config.py"
    config.write_text(CONFIG)
    port = find_port()
    running = []
    for i in range(2):
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        flags = [f"--config={config}", f"--workdir={workdir}", "--config.num_devices=4"]
        if slurm:
            environment |= {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "localhost"}
            environment |= {"SLURM_NTASKS": "2", "SLURM_PROCID": str(i)}
            environment |= {"SLURM_LOCALID": str(i), "JAX_COORDINATOR_PORT": str(port)}
        else:
            flags.append(f"--config.coordinator_address=localhost:{port}")
            flags += ["--config.num_processes=2", f"--config.process_id={i}"]
        what = [str(number), str(at)] if i else ["0", "0"]
        script = [sys.executable, str(ROOT / "tests/train/one_process.py")]
        running.append(
            subprocess.Popen(
                [*script, *what, *flags, *filter(None, [fields[i]])],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    done = []
    try:
        for process in running:
            out, error = process.communicate(timeout=300)
            done.append((process.returncode, out, error))
    finally:
        for process in running:
            process.kill()
    return done


def check_same(rows, others):
    assert len(rows) == len(others)
    for row, other in zip(rows, others, strict=True):
        for name in row.keys() - {"images_per_second", "elapsed_seconds"}:
            assert other[name] == pytest.approx(row[name], rel=1e-4), name


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("alone")
    loop.train_and_evaluate(tiny.make_config(**OPTIONS, num_devices=1), workdir)
    return read_rows(workdir), read_json(workdir, "evaluation")


def test_the_curve_is_that_of_one_device_also_after_sigterm(alone, tmp_path):
    workdir = tmp_path / "run"
    # In the second process, during the second step of the second epoch.
    first, second = start(workdir, signal.SIGTERM, 7)
    assert "device: cpu (4 of 4 used)" in first[1]
    assert "stopped; the same command resumes" in first[1]
    assert "Gloo" not in first[1]
    assert first[::2] == (143, "terminated\n")
    assert second == (143, "", "")
    assert len(list((workdir / "partial").iterdir())) == 1

    first, second = start(workdir, slurm=True)
    assert first[::2] == (0, "")
    assert second == (0, "", "")
    assert "resuming after epoch 1, step " in first[1]
    rows, evaluation = alone
    check_same(rows, read_rows(workdir))
    other = read_json(workdir, "evaluation")
    assert other["confusion_matrix"] == evaluation["confusion_matrix"]
    assert other["num_examples"] == evaluation["num_examples"] == 13
    assert other["loss"] == pytest.approx(evaluation["loss"], rel=1e-4)


def test_one_process_goes_on_after_another_was_killed(alone, tmp_path, capsys):
    workdir = tmp_path / "run"
    first, second = start(workdir, signal.SIGKILL, 7)
    assert second == (-signal.SIGKILL, "", "")
    assert first[2] == LOST
    assert first[0] != 0
    check_same(alone[0][:1], read_rows(workdir))
    loop.train_and_evaluate(tiny.make_config(**OPTIONS, num_devices=1), workdir)
    assert "resuming after epoch 1, step 5\n" in capsys.readouterr().out
    check_same(alone[0], read_rows(workdir))


def test_processes_of_different_runs_are_refused(tmp_path):
    first, second = start(tmp_path / "run", fields=("", "--config.seed=1"))
    assert first[2].startswith("error: the processes have different fields, ")
    assert first[2].count("\n") == 1
    assert first[0] == 2
    assert second == (2, "", "")
    assert not (tmp_path / "run").exists()


def test_an_error_of_one_ends_all(tmp_path):
    directory = f"--config.data_dir={tmp_path}"
    first, second = start(tmp_path / "run", fields=("", directory))
    assert second[:2] == (2, "")
    assert second[2].startswith("process 1: error: dataset='tiny' is unknown to TFDS; ")
    assert second[2].count("\n") == 1
    assert first[2] == LOST
    assert first[0] != 0


THREE = (
    "coordinator_address=localhost:{port}",
    "num_processes=2",
    "process_id=1",
)
MISSING = "--config.{}: is missing beside {}; give all three, or none"
ONE_PROCESS = (
    "--mode={} is for one process, and {} has 2; start it once, with "
    "--config.num_processes=1"
)


@pytest.mark.parametrize(
    ("mode", "fields", "message"),
    [
        ("train", THREE[:2], MISSING.format("process_id", "{0}, {1}")),
        ("train", THREE[1:], MISSING.format("coordinator_address", "{1}, {2}")),
        ("train", THREE[:1], MISSING.format("num_processes", "{0}")),
        (
            "train",
            (*THREE[:2], "process_id=2"),
            "--config.process_id=2: must be below --config.num_processes=2; the first "
            "is 0",
        ),
        *(
            (mode, THREE, ONE_PROCESS.format(mode, "--config.num_processes=2"))
            for mode in ("evaluate", "export", "efficiency", "compare", "sweep")
        ),
        ("train", THREE, "--config.{0}: cannot be reached (Connection refused); give "),
    ],
)
def test_a_mistake_is_one_line(tmp_path, monkeypatch, capsys, mode, fields, message):
    monkeypatch.setattr(launch, "START_SECONDS", 0.5)
    fill = dict(port=find_port())
    values = [field.format(**fill) for field in THREE]
    flags = [f"--config.{field.format(**fill)}" for field in fields]
    flags += ["--config=digits", f"--mode={mode}", f"--workdir={tmp_path / 'run'}"]
    assert __main__.main(["main.py", *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: " + message.format(*values))
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_port_in_use_is_one_line(capsys):
    with socket.create_server(("", 0)) as server:
        address = f"localhost:{server.getsockname()[1]}"
        flags = [f"--config.coordinator_address={address}", "--config.process_id=0"]
        flags += ["--config=digits", "--config.num_processes=2"]
        assert __main__.main(["main.py", *flags]) == 2
    line = f"error: --config.coordinator_address={address}: cannot be used (Address "
    assert capsys.readouterr().err.startswith(line)


def test_the_environment_is_asked_except_by_workers_of_a_sweep(monkeypatch):
    for name, value in (("JOB_ID", "1"), ("STEP_NODELIST", "a"), ("NTASKS", "2")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    for name in ("SLURM_PROCID", "SLURM_LOCALID"):
        monkeypatch.setenv(name, "0")
    config = tiny.make_config()
    message = ONE_PROCESS.format("compare", r"the environment \(slurm\)")
    with pytest.raises(launch.ConfigError, match=message):
        launch.start(config, "compare", debug=False)
    launch.start(config, "sweep", debug=False)
    config.num_processes = 1
    launch.start(config, "compare", debug=False)
    config.num_processes = None
    monkeypatch.setenv("SLURM_NTASKS", "1")
    launch.start(config, "compare", debug=False)


DUMP = (
    b"E1127 21:59:28.018188   15026 coordination_service_agent.cc:288] Polled error\n"
    b"F1127 21:59:28.018200   15026 client.h:86] Terminating process because the JAX "
    b"distributed service detected fatal errors. This most likely\n"
    b"*** Check failure stack trace: ***\n    @ 0x7f absl::LogMessage::Flush()\n"
)


def test_the_dump_of_jax_becomes_one_line():
    def run(content, *debug):
        command = [sys.executable, "-IS", condense.__file__, "host0:1", *debug]
        result = subprocess.run(command, input=content, capture_output=True)
        return result.stderr.decode()

    before = b"a warning\n"
    shown = run(before + condense.STARTED + DUMP)
    assert shown == "a warning\n" + LOST
    assert run(before + condense.STARTED + DUMP, "debug").endswith("Flush()\n" + LOST)
    shown = run(DUMP)
    assert shown.startswith("error: not all processes have come to host0:1 in time; ")
    assert shown.count("\n") == 1
    # What is no dump is not lost.
    assert run(before + DUMP[:80]).encode() == before + DUMP[:80]


def test_without_jaxs_detection_a_process_is_alone(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setitem(sys.modules, "jax._src.clusters", None)
    assert launch._ask_environment() == ("", 1, 0)
