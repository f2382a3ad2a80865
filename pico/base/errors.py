"""Errors that a person can mend."""


class PicoError(Exception):
    """Something the user can mend. The message is one line: what was wrong, what was expected, what to type."""


class DataError(PicoError):
    """Text that can no longer be read: its file changed, or its server is gone."""
