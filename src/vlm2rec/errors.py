"""The one exception that users are meant to see."""


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one line that says what is wrong, where, and what to do. The command line prints it and
    exits with status 2; nothing half-written is left behind.
    """
