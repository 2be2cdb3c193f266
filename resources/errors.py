"""The exceptions whose text is meant for the person at the keyboard."""


class UserError(Exception):
    """Something that a user can put right: one line saying what, where and what to do.

    The command line prints it without a traceback and exits with `exit_status`; a Dagster run fails with
    it as its description and is not retried, because trying again cannot help.
    """

    exit_status = 2


class TransientError(UserError):
    """Something outside that may pass by itself (a full disk, a server that is down): try again later."""

    exit_status = 75  # EX_TEMPFAIL of sysexits.h


class BusyError(TransientError):
    """Another process is at the same work; it is no failure of the work."""
