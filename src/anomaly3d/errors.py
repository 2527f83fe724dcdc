"""The one error a user is meant to read."""


class InputError(ValueError):
    """Bad input from outside: a file, a folder, a checkpoint or a setting.

    The message is complete by itself: it names the file (or the setting) and the remedy. The command line
    prints it without a traceback and exits with status 2.
    """
