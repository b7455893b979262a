"""A command that trains, killed in the middle."""

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.waiting import eventually

PATIENCE = 60.0


def end_after_an_epoch(command: Sequence[str], folder: Path, how: signal.Signals) -> subprocess.CompletedProcess[str]:
    """Run `resnet-export`, and signal it as soon as the state of a first epoch lies in the folder."""
    # A shell starts what it runs in the background with SIGINT ignored, and the command would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen([sys.executable, "-m", "model_export", *command], stderr=subprocess.PIPE, text=True)
    eventually(lambda: process.poll() is not None or list(folder.glob("*.training.safetensors")), within=PATIENCE)
    assert process.poll() is None
    process.send_signal(how)
    _, said = process.communicate(timeout=PATIENCE)
    return subprocess.CompletedProcess(command, process.returncode, stderr=said)
