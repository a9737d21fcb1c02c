"""SIGINT and SIGTERM held back while weights change, so that what is saved then is whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_STOPPING = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def held_signals() -> Iterator[Callable[[], int]]:
    """Note SIGINT and SIGTERM in a block instead of obeying them; a second one ends the process at once.

    Yields:
        A function that answers the number of the signal that came, 0 for none. Whoever asks has to obey.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0  # Python delivers signals to the main thread alone
        return
    received = 0

    def note(number: int, frame: object) -> None:
        nonlocal received
        received = number
        for each in _STOPPING:
            signal.signal(each, signal.SIG_DFL)

    before = {each: signal.signal(each, note) for each in _STOPPING}
    try:
        yield lambda: received
    finally:
        if not received:
            for each, handler in before.items():
                signal.signal(each, handler)
