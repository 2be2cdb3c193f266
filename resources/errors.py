"""The exceptions whose text is meant for the person at the keyboard."""


class UserError(Exception):
    """Something that a user can put right: one line saying what, where and what to do.

    The command line prints it without a traceback and exits with status 2; a Dagster run fails with
    it as its description and is not retried, because trying again cannot help.
    """


class TransientError(UserError):
    """Something outside that may pass by itself (a full disk, a server that is down): try again later."""


class BusyError(TransientError):
    """Another process is at the same work; it is no failure of the work."""
