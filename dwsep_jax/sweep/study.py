"""The Optuna study of a sweep: its storage, its queue of trials, samplers and pruners.

Every trial is queued from the start, so that workers that join later add none. Nothing
here needs jax.
"""

import contextlib
import json
import pathlib
import re
import sqlite3
import time
import warnings
from functools import partial
from typing import NamedTuple

import numpy as np
import optuna
import sqlalchemy
from ml_collections import ConfigDict
from optuna import pruners, samplers, storages
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from dwsep_jax.errors import ConfigError, UserError
from dwsep_jax.fields import SWEEP
from dwsep_jax.lock import locked
from dwsep_jax.space import Axis
from dwsep_jax.workdir import identity

Retry = storages.RetryHeartbeatStaleTrialCallback
HEARTBEAT_SECONDS = 10
GRACE_SECONDS = 3 * HEARTBEAT_SECONDS
POLL_SECONDS = 2.0
_DEFINITION = "dwsep_jax_sweep"  # An attribute of our studies.
_QUEUED = "planned"  # An attribute of the trials that were queued.
_RESTORE = "restore it from a copy, or choose another --workdir"
_CONNECT_ARGS = {"sqlite": {"timeout": 60}, "postgresql": {"connect_timeout": 10}}

SAMPLERS = {
    "tpe": lambda axes, seed: samplers.TPESampler(seed=seed, constant_liar=True),
    "random": lambda axes, seed: samplers.RandomSampler(seed=seed),
    "grid": lambda axes, seed: samplers.GridSampler(
        {axis.name: axis.values for axis in axes}, seed=seed
    ),
}
# No trial is judged before a quarter of its epochs: low learning rates start slowly.
PRUNERS = {
    "median": lambda num_epochs: pruners.MedianPruner(
        n_startup_trials=5, n_warmup_steps=num_epochs // 4
    ),
    "halving": lambda num_epochs: pruners.SuccessiveHalvingPruner(
        min_resource=max(1, num_epochs // 4), reduction_factor=2
    ),
    "none": lambda num_epochs: pruners.NopPruner(),
}


class Sweep(NamedTuple):
    """A sweep whose study is open."""

    config: ConfigDict
    axes: list[Axis]
    workdir: pathlib.Path
    study: optuna.Study


def is_file(storage: str | None) -> bool:
    """Return whether the study is study.db or a journal, and not in a database."""
    return storage is None or storage.endswith((".journal", ".log"))


def open_storage(storage: str | None, workdir: pathlib.Path) -> storages.BaseStorage:
    """Return the storage that `config.sweep.storage` names; unset: study.db.

    Raises:
      ConfigError: if it is neither the URL of a database nor a journal.
      UserError: if it cannot be opened, or its driver is missing.
    """
    # Heartbeats, retries and TPE's constant liar are experimental in Optuna.
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    path = workdir / "study.db"
    # A URL that cannot be parsed may contain a password.
    shown = re.sub("://.*", "://...", storage or "")
    try:
        if storage is None:
            _check_pages(path)
            # Not parsed: it may have a %.
            url = sqlalchemy.URL.create("sqlite", database=str(path.resolve()))
            return _open_database(url)
        if is_file(storage):
            return _open_journal(pathlib.Path(storage).expanduser())
        url = sqlalchemy.make_url(storage)
        shown = url.render_as_string(hide_password=True)
        return _open_database(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise ConfigError(
            f"--config.sweep.storage={shown}: must be the URL of a database on disk, "
            "or an Optuna journal *.journal or *.log; e.g. "
            "--config.sweep.storage=postgresql://user@host/database"
        ) from None
    except ImportError as error:
        raise UserError(
            f"--config.sweep.storage={shown}: the database's driver is missing "
            f"({error.__cause__}); install it, for PostgreSQL with "
            "pip install 'dwsep_jax[postgresql]'"
        ) from error
    except (OSError, sqlite3.Error, sqlalchemy.exc.SQLAlchemyError, RuntimeError) as e:
        failure = describe_failure(e)
        if storage is None:
            raise UserError(f"{path} cannot be read: {failure}; {_RESTORE}") from e
        raise UserError(
            f"--config.sweep.storage={shown}: cannot be opened: {failure}; start the "
            "database, or correct the address"
        ) from e


def _check_pages(path):
    """Raise an error for a damaged page; SQLite would once it reads that one."""
    if path.exists():
        place = f"{path.resolve().as_uri()}?mode=rw"
        connection = sqlite3.connect(place, timeout=60, uri=True)
        with contextlib.closing(connection):
            (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise RuntimeError(found.splitlines()[-1])


def _open_journal(path):
    number = _find_damaged_line(path) if path.exists() else None
    if number:  # Perhaps another worker is just writing it.
        time.sleep(POLL_SECONDS / 2)
        number = _find_damaged_line(path)
    if number == 1:
        raise ValueError("it is another program's log")
    if number:  # Optuna would add to it.
        raise UserError(
            f"--config.sweep.storage={path}: line {number} is damaged; delete it and "
            "those below, restore the file from a copy, or choose another --workdir"
        )
    try:
        return storages.JournalStorage(JournalFileBackend(str(path)))
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"--config.sweep.storage={path}: is damaged ({error!r}); {_RESTORE}"
        ) from error


def _find_damaged_line(path):
    """Return the number of the first line that is not Optuna's, or None."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                is_whole = line.endswith(b"\n") and "op_code" in json.loads(line)
            except (ValueError, TypeError, RecursionError):
                is_whole = False
            if not is_whole:
                return number
    return None


def _open_database(url):
    backend = url.get_backend_name()
    if backend == "sqlite" and url.database in (None, "", ":memory:"):
        raise ValueError("the study would be lost with the process")
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    open_once = partial(
        storages.RDBStorage,
        url.render_as_string(hide_password=False),
        engine_kwargs={
            "pool_pre_ping": True,
            "connect_args": _CONNECT_ARGS.get(backend, {}),
        },
        heartbeat_interval=HEARTBEAT_SECONDS,
        grace_period=GRACE_SECONDS,
        heartbeat_stale_trial_callback=Retry(),
    )
    for _ in range(2):
        # Of two workers that create the tables at once, one fails, and then finds them.
        with contextlib.suppress(sqlalchemy.exc.DBAPIError):
            return open_once()
        time.sleep(POLL_SECONDS / 2)
    return open_once()


def describe_failure(error: Exception) -> str:
    """Return the system's own message, without SQLAlchemy's and Optuna's framing."""
    if isinstance(error.__cause__, sqlalchemy.exc.SQLAlchemyError):
        error = error.__cause__
    text = getattr(error, "strerror", None) or getattr(error, "orig", None) or error
    return str(text).strip().partition("\n")[0]


def check_study(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Check that the storage can take this sweep, and has the workdir's trials if any.

    Raises:
      ConfigError: if the study of that name belongs to another sweep.
      UserError: if the storage cannot be opened, or lacks the study of the workdir.
    """
    has_study_db = config.sweep.storage is None and (workdir / "study.db").exists()
    if config.sweep.storage is not None or has_study_db:
        storage = open_storage(config.sweep.storage, workdir)
        with contextlib.suppress(KeyError):
            study = optuna.load_study(study_name=config.sweep.study, storage=storage)
            _claim(study, config)
            return
    if any(workdir.glob("trials/*")):
        if has_study_db:
            raise UserError(
                f"{workdir}/study.db lacks the study of the trials there; {_RESTORE}"
            )
        raise UserError(
            f"--workdir={workdir}: has trials, but the storage has no study of them; "
            "choose another --workdir, or its original --config.sweep.storage"
        )


def open_study(
    config: ConfigDict, axes: list[Axis], workdir: pathlib.Path, num_trials: int
) -> Sweep:
    """Create or join the study, and fill its queue up to `num_trials`.

    Raises:
      ConfigError: if the study of that name belongs to another sweep.
      UserError: if the storage cannot be opened.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    (workdir / "trials").mkdir(exist_ok=True)
    with locked(workdir / "trials"):
        options = {
            "study_name": config.sweep.study,
            "storage": open_storage(config.sweep.storage, workdir),
            "pruner": PRUNERS[config.sweep.pruner](config.num_epochs),
        }
        try:
            study = optuna.create_study(direction="maximize", **options)
            count = 0
        except optuna.exceptions.DuplicatedStudyError:
            study = optuna.load_study(**options)
            count = _count_settled(study, num_trials)
        _claim(study, config)
        queued = {"state": TrialState.WAITING, "user_attrs": {_QUEUED: True}}
        for _ in range(num_trials - count):
            study.add_trial(optuna.create_trial(**queued))
    return Sweep(config, axes, workdir, study)


def _count_settled(study, num_trials):
    """Count the trials but for retries, once another machine has added all of its."""
    before = -1
    while True:
        count = len({get_original(trial) for trial in list_trials(study)})
        if not before < count < num_trials:
            return count
        before = count
        time.sleep(POLL_SECONDS / 2)


def _claim(study, config):
    """Write into an empty study what its workers must agree on, or compare it."""
    here = json.loads(json.dumps(identity(config, SWEEP)))  # Tuples become lists.
    # In this order: the creator writes the definition before the first trial.
    is_empty = not study.get_trials(deepcopy=False)
    there = study.user_attrs.get(_DEFINITION)
    if there is None and is_empty:
        study.set_user_attr(_DEFINITION, here)
        return
    differences = ["it is not a sweep"]
    if there is not None:
        differences = [
            f"{name}={there.get(name)} there, {here.get(name)} here"
            for name in sorted(here.keys() | there.keys())
            if there.get(name) != here.get(name)
        ]
    if differences:
        raise ConfigError(
            f"--config.sweep.study={study.study_name}: the study of that name in the "
            f"storage is another one: {'; '.join(differences)}; choose another "
            "--config.sweep.study"
        )


def is_queued(trial: FrozenTrial | optuna.Trial) -> bool:
    """Return whether a trial was queued; Optuna adds one when the queue runs empty."""
    return _QUEUED in trial.user_attrs


def list_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Return all trials that were queued, retries included, ordered by number."""
    return [t for t in study.get_trials(deepcopy=False) if is_queued(t)]


def get_original(trial: FrozenTrial) -> int:
    """Return the number of the trial that this one retries, or else its own."""
    number = Retry.retried_trial_number(trial)
    return trial.number if number is None else number


def make_sampler(sweep: Sweep, number: int) -> samplers.BaseSampler:
    """Return the sampler of a trial, a function of the sweep's seed and its number.

    With one seed for all, workers that run at once would draw the same points, and so
    would a worker that is restarted.
    """
    config, seed = sweep.config, sweep.config.seed
    if config.sweep.sampler != "grid":  # A grid is shuffled once, for all trials.
        sequence = np.random.SeedSequence([seed, number])
        seed = int(sequence.generate_state(1)[0])
    return SAMPLERS[config.sweep.sampler](sweep.axes, seed)
