"""Signals that end a run: recorded when they arrive, handled between chunks of steps."""

import contextlib
import signal
import threading
from collections.abc import Iterator

# Signals that end a run: Ctrl-C, and those sent by schedulers and closing terminals.
SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    if hasattr(signal, name)
)


@contextlib.contextmanager
def noted(caught: list[int]) -> Iterator[None]:
    """Record signals that end a run in `caught`; a second one has its original effect.

    Signals that are ignored, as under `nohup`, or whose handler is not Python's are left alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python delivers signals to the main thread only
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
