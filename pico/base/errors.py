"""Errors that a person can mend."""


class PicoError(Exception):
    """Something the user can mend. The message is one line: what was wrong, what was expected, what to type."""


class DiskFull(PicoError):
    """No room is left to write: what comes next would fail as well."""


class DataError(PicoError):
    """Text that can no longer be read: its file changed, or its server is gone."""
