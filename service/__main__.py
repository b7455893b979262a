"""`resnet-serve`, which is `python -m service`, too."""

import os
import signal
import sys


def main() -> int:
    """Run a command; the return value is the exit code. Whoever interrupts one before it serves gets a line."""
    # As an exception it would come out of whatever is being imported, and Python would wait for a model that is being
    # opened. Where interrupts are ignored, as in the background of a shell, they still are.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: _end())
    from service.cli import main as run  # noqa: PLC0415  most of what can be interrupted are imports

    return run()


def _end() -> None:
    os.write(2, b"resnet-serve: interrupted\n")
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
