"""A real server process whose device fails when a file says so: `python -m tests.faults.faulty ORDERS FLAGS…`.

The file holds one word: hang, die, lose, exhaust (out of memory for more than one image), exhaust-all, fail, slow, or
hold, for as long as the file says so.
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from service.app import create_app
from service.logs import configure_logging
from service.opening import Opener
from service.runtime import Array, DeviceLost, OnnxBackend, OutOfDeviceMemory, Outputs, open_onnx
from service.server import serve
from service.settings import read_settings
from tests.system.patient import be_patient

# Of each run, whatever its size: so batches pay on any machine, and images that come together run together.
RUN_SECONDS = 0.005
# Of a run that others can come between.
SLOW_SECONDS = 0.5


class FaultyBackend(OnnxBackend):
    """onnxruntime's, until the file orders otherwise."""

    orders: Path

    def run(self, images: Array, **options: object) -> Outputs:
        """The logits, or what was ordered."""
        time.sleep(RUN_SECONDS)
        while (order := self._order()) == "hold":
            time.sleep(RUN_SECONDS)
        if order in _FAULTS:
            _FAULTS[order](len(images))
        return super().run(images, **options)  # type: ignore[arg-type]

    def _order(self) -> str:
        return self.orders.read_text().strip() if self.orders.exists() else ""


def _hang(_: int) -> None:
    threading.Event().wait()


def _die(_: int) -> None:
    raise SystemExit("the thread ends here")


def _lose(_: int) -> None:
    raise DeviceLost("CUDA failure 700: an illegal memory access was encountered")


def _exhaust(images: int) -> None:
    if images > 1:
        raise OutOfDeviceMemory("Failed to allocate memory")


def _exhaust_all(_: int) -> None:
    raise OutOfDeviceMemory("Failed to allocate memory")


def _slow(_: int) -> None:
    time.sleep(SLOW_SECONDS)


def _fail(_: int) -> None:
    raise RuntimeError("a secret of the inside")


_FAULTS: dict[str, Callable[[int], None]] = {
    "hang": _hang,
    "die": _die,
    "lose": _lose,
    "exhaust": _exhaust,
    "exhaust-all": _exhaust_all,
    "fail": _fail,
    "slow": _slow,
}


def main() -> None:
    """Serve as `resnet-serve` does, on a device that takes orders."""
    orders, *flags = sys.argv[1:]
    FaultyBackend.orders = Path(orders)
    names = [flag.removeprefix("--").replace("-", "_") for flag in flags[::2]]
    settings = read_settings(dict(zip(names, flags[1::2], strict=True)))

    def open_faulty(path: Path) -> FaultyBackend:
        backend = open_onnx(path, "cpu", 1)
        backend.__class__ = FaultyBackend
        assert isinstance(backend, FaultyBackend)
        return backend

    be_patient()
    configure_logging(settings.log_format, settings.log_level)
    reason = serve(create_app(settings, Opener(open_faulty)), settings)
    sys.stderr.write(f"resnet-serve: {reason}\n")
    sys.stderr.flush()
    sys.stdout.flush()
    os._exit(1 if reason else 0)


if __name__ == "__main__":
    main()
