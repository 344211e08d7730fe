"""Where a sweep's study is kept: SQLite in the workdir, a database, a journal file."""

import contextlib
import json
import pathlib
import time
import warnings
from collections.abc import Iterator

import optuna
import sqlalchemy
from optuna.storages import (
    BaseStorage,
    JournalStorage,
    RDBStorage,
    RetryHeartbeatStaleTrialCallback,
)
from optuna.storages.journal import JournalFileBackend

from dwsep_jax.errors import ConfigError, UserError

HEARTBEAT_SECONDS = 10
GRACE_SECONDS = 3 * HEARTBEAT_SECONDS
_CONNECT_SECONDS = 10


def is_file(storage: str | None) -> bool:
    """Return whether the study is in the workdir or a journal file, not a database.

    Raises:
      ConfigError: if it is neither a file nor a URL.
    """
    if storage is None or storage.endswith((".journal", ".log")):
        return True
    if "://" not in storage:
        raise ConfigError(
            f"--config.sweep.storage={storage}: must be a database's URL, or a file "
            "*.journal or *.log; e.g. --config.sweep.storage=postgresql://user@host/database"
        )
    return False


def open_storage(storage: str | None, workdir: pathlib.Path) -> BaseStorage:
    """Return the storage that `config.sweep.storage` names, else the workdir's own.

    Raises:
      ConfigError: if it is neither a URL nor a journal file.
      UserError: if it cannot be reached, or its driver is missing.
    """
    if storage is None:
        return _open_database(f"sqlite:///{workdir.resolve()}/study.db")
    if not is_file(storage):
        return _open_database(storage)
    path = pathlib.Path(storage).expanduser()
    try:
        if path.exists() and path.stat().st_size > 0:
            with path.open(encoding="utf-8") as file:
                json.loads(next(file))
        return JournalStorage(JournalFileBackend(str(path)))
    except OSError as error:
        raise UserError(
            f"--config.sweep.storage={storage}: cannot be used: {error.strerror}; name "
            "a file in a directory that exists and can be written"
        ) from error
    except ValueError as error:  # No JSON: a log of something else.
        raise UserError(
            f"--config.sweep.storage={storage}: is no journal of Optuna; name "
            "another file"
        ) from error


def _open_database(storage):
    try:
        url = sqlalchemy.make_url(storage)
        backend = url.get_backend_name()
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise _no_url(storage.partition("://")[0] + "://...") from None
    shown = url.render_as_string(hide_password=True)
    if backend == "sqlite" and url.database in (None, "", ":memory:"):
        raise ConfigError(
            f"--config.sweep.storage={shown}: would be lost with the process; leave it "
            "out, or name a file after sqlite:///"
        )
    options = {"pool_pre_ping": True}
    if backend == "postgresql":
        if url.drivername == "postgresql":
            url = url.set(drivername="postgresql+psycopg")
        options["connect_args"] = {"connect_timeout": _CONNECT_SECONDS}
    elif backend == "sqlite":
        options["connect_args"] = {"timeout": 60}
    for attempt in (1, 2, 3):
        try:
            with calmly():
                return RDBStorage(
                    url.render_as_string(hide_password=False),
                    engine_kwargs=options,
                    heartbeat_interval=HEARTBEAT_SECONDS,
                    grace_period=GRACE_SECONDS,
                    heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
                )
        except sqlalchemy.exc.NoSuchModuleError:
            raise _no_url(shown) from None
        except ImportError as error:
            raise UserError(
                f"--config.sweep.storage={shown}: the driver of that database is "
                f"missing; {_describe_driver(url.drivername)}"
            ) from error
        except (sqlalchemy.exc.SQLAlchemyError, RuntimeError) as error:
            # Two workers that create the same tables at once: the later one finds them.
            is_race = isinstance(
                error, sqlalchemy.exc.IntegrityError | sqlalchemy.exc.ProgrammingError
            )
            if is_race and attempt < 3:
                time.sleep(1)
                continue
            raise UserError(
                f"--config.sweep.storage={shown}: cannot be reached: "
                f"{first_line(error)}; start the database, or correct the URL"
            ) from error
    raise AssertionError("the last attempt returns or raises")


def _no_url(shown):
    return ConfigError(
        f"--config.sweep.storage={shown}: is no URL of a database; e.g. "
        "--config.sweep.storage=postgresql://user@host/database"
    )


def _describe_driver(name):
    if name == "postgresql+psycopg":
        return "pip install 'dwsep_jax[postgresql]'"
    return f"install one that SQLAlchemy knows for {name}"


@contextlib.contextmanager
def kept(study_name: str) -> Iterator[None]:
    """Raise `UserError` where the storage of a study is lost, or holds other things."""
    try:
        yield
    except optuna.exceptions.StorageInternalError as error:
        raise UserError(
            f"the storage of study {study_name} is lost: {first_line(error)}; "
            "give the same command again when it can be reached"
        ) from error


def first_line(error: Exception) -> str:
    """Return what the database says, without what SQLAlchemy and Optuna say of it."""
    if isinstance(error.__cause__, sqlalchemy.exc.SQLAlchemyError):
        error = error.__cause__
    cause = getattr(error, "orig", None) or error
    return str(cause).strip().partition("\n")[0]


@contextlib.contextmanager
def calmly() -> Iterator[None]:
    """Leave out that Optuna may change what it calls experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
