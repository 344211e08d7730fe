"""Errors that the user can fix; each names the field or file, and the remedy."""


class UserError(Exception):
    """A problem that the user can fix, such as missing data or a full disk.

    `main.py` prints the message as one line and exits with `exit_code`.
    """

    exit_code = 1


class ConfigError(UserError, ValueError):
    """A config field or a command-line flag has an invalid value."""

    exit_code = 2


class DivergedError(UserError):
    """A loss or a parameter is no longer finite."""


class ToldError(UserError):
    """An error of process 0, which prints it; the other processes just end."""

    def __init__(self, exit_code: int):
        super().__init__("process 0 has failed")
        self.exit_code = exit_code


class DataError(UserError):
    """A dataset is missing, damaged, or not of the kind that this program reads."""


def choose(field: str, name: str, choices):
    """Return `choices[name]`; raise `ConfigError` that lists the choices otherwise."""
    try:
        return choices[name]
    except (KeyError, TypeError):
        raise ConfigError(
            f"{field}={name!r} is unknown; choose one of {', '.join(choices)}"
        ) from None


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether Python or XLA found no memory left, on host or device."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
