"""Signals that end a run: noted while it goes on, and heard between its stretches."""

import contextlib
import signal
import threading
from collections.abc import Iterator

# What the system may send to end a run: Ctrl-C, and what schedulers and closed terminals do.
SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    if hasattr(signal, name)
)


@contextlib.contextmanager
def noted(caught: list[int]) -> Iterator[None]:
    """Signals that end a run are noted in a list; a second one does what it did before.

    Those that are ignored, as under `nohup`, stay so; and those whose handler is not Python's.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python leaves signals to the main thread
        return
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    before = {n: h for n, h in handlers.items() if h not in (None, signal.SIG_IGN)}

    def note(number, frame):
        if caught:
            signal.signal(number, before[number])
            signal.raise_signal(number)
        caught.append(number)

    for number in before:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
