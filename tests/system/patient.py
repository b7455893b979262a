"""A server that waits long for requests which began to come before it was stopped: `python -m tests.system.patient`.

A test that is held up, and sends the rest late, has not lost its request.
"""

import sys

from service import server
from service.__main__ import main

PATIENT_SECONDS = 20.0


def be_patient() -> None:
    """To be called before anything is served."""
    server.LAST_REQUEST_SECONDS = PATIENT_SECONDS


if __name__ == "__main__":
    be_patient()
    sys.exit(main())
