"""A command that trains, ended in the middle."""

import signal
import subprocess
import sys
from collections.abc import Sequence

# It ends itself: a test that watched from outside might look too late.
PROGRAM = """
import os, signal, sys
from model_export.cli import main
from model_export.training_state import TrainingState

signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
save = TrainingState.save

def save_and_end(state, training):
    save(state, training)
    os.kill(os.getpid(), {how})

TrainingState.save = save_and_end
sys.exit(main(sys.argv[1:]))
"""


def end_after_an_epoch(command: Sequence[str], how: signal.Signals) -> subprocess.CompletedProcess[str]:
    """Run `resnet-export`, which gets the signal as soon as the state of the first epoch is written."""
    program = [sys.executable, "-c", PROGRAM.format(how=int(how)), *command]
    return subprocess.run(program, stderr=subprocess.PIPE, text=True, timeout=280, check=False)
