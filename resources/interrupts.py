"""Ending in time: what a process that is told to end (SIGTERM) still does, and how soon it is gone.

A pod that is evicted gets SIGTERM and, some time later, SIGKILL. Python raises an exception for a signal
only between two instructions of the main thread, and Dagster puts even that off outside of an asset's own
code. So a thread listens to the signals, too: where the main thread has not ended the process within
`GRACE_SECONDS`, it does what is left to do (`last_words`) and ends the process.
"""

import atexit
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

GRACE_SECONDS = 3.5
LAST_WORDS_SECONDS = 1.0

_last_words: list[Callable[[], None]] = []
_watching = False
_received: list[signal.Signals] = []
_heard = threading.Event()


@contextmanager
def watching() -> Iterator[None]:
    """Listen to SIGTERM and SIGINT, in the main thread; after a SIGTERM the process exits with status 143.

    What raises the exception in the main thread is left as it is: Python's own handler or Dagster's.
    """
    global _watching
    if _watching or threading.current_thread() is not threading.main_thread():
        yield
        return
    _watching = True
    _received.clear()
    _heard.clear()
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    previous = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    over = threading.Event()
    threading.Thread(target=_listen, args=(reader, over), name="interrupts", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        writer.close()
        over.wait()
        _watching = False


@contextmanager
def last_words(action: Callable[[], None]) -> Iterator[None]:
    """Have this done, in another thread, should the main thread be stuck when the process has to end."""
    _last_words.append(action)
    try:
        yield
    finally:
        _last_words.remove(action)


def received() -> signal.Signals | None:
    """What this process was told, if anything; a moment is allowed for a signal that has just raised."""
    _heard.wait(0.1)
    if signal.SIGTERM in _received:
        return signal.SIGTERM
    return _received[0] if _received else None


def asked_to_end() -> bool:
    """Whether a signal was heard."""
    return bool(_received)


def exit_status() -> int:
    """The exit status of a process that ends because it was interrupted."""
    return 128 + (received() or signal.SIGINT)


def _listen(reader: socket.socket, over: threading.Event) -> None:
    while signal.SIGTERM not in _received:
        numbers = reader.recv(16)
        if not numbers:
            reader.close()
            over.set()
            return
        _received.extend(signal.Signals(number) for number in numbers)
        _heard.set()
    atexit.register(_exit)
    over.set()
    threading.Event().wait(GRACE_SECONDS)
    words = threading.Thread(target=_say_last_words, daemon=True)
    words.start()
    words.join(LAST_WORDS_SECONDS)
    os._exit(128 + signal.SIGTERM)


def _say_last_words() -> None:
    for action in list(_last_words):
        action()


def _exit() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(128 + signal.SIGTERM)
