"""`resnet-serve`: serve the models, or check them.

Exit codes: 0 done; 1 failed, with one line on stderr; 2 wrong usage.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from service.access import new_key
from service.errors import StartError
from service.logs import configure_logging
from service.memory import postpone_collection, use_one_arena
from service.opening import opener_for
from service.settings import PREFIX, Settings, SettingsError, read_settings

EPILOG = "Every flag is also an environment variable of the name in brackets; the flag wins."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the return value is the exit code."""
    flags = vars(_parser().parse_args(arguments))
    command = flags.pop("command")
    if command == "key":
        return _make_key()
    try:
        settings = read_settings({name: value for name, value in flags.items() if value is not None})
    except SettingsError as error:
        return _fail(str(error), code=2)
    try:
        return {"check": _check, "doctor": _doctor, "serve": _serve}[command](settings)
    except StartError as error:
        return _fail(str(error))


def _serve(settings: Settings) -> int:
    use_one_arena()
    postpone_collection()
    configure_logging(settings.log_format, settings.log_level)
    opener = opener_for(settings)
    opener.begin(settings.models)
    # The web framework takes a third of a second to import, in which the first model is opened on the other core.
    from service.app import create_app  # noqa: PLC0415
    from service.server import serve  # noqa: PLC0415

    try:
        reason = serve(create_app(settings, opener), settings)
    except StartError as error:
        reason = str(error)
    if reason:
        _fail(reason)
        logging.shutdown()
        os._exit(1)  # the libraries' own clean-up would wait for a run that hangs, or for a model that is being opened
    return 0


def _check(settings: Settings) -> int:
    from service.check import check  # noqa: PLC0415  a start does not wait for what it does not need

    failed = 0
    for verdict in check(settings):
        print(verdict)
        failed += verdict.model is None
    return _fail(f"{failed} of the models cannot be served") if failed else 0


def _doctor(settings: Settings) -> int:
    from service.doctor import examine  # noqa: PLC0415  as in _check

    failed = 0
    for finding in examine(settings):
        print(finding)
        failed += finding.fatal
    return _fail(f"{failed} of these keep it from serving") if failed else 0


def _make_key() -> int:
    key, line = new_key()
    print(f"{key}\n\nIts line in SERVICE_API_KEYS_FILE; give it a name, and `classify,admin` to control models:")
    print(f"{line}\n\nThe key is shown this once and kept nowhere.")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="resnet-serve", description="Serve ONNX classifiers over HTTP.", epilog=EPILOG
    )
    parser.add_argument(
        "command",
        nargs="?",
        choices=("serve", "check", "doctor", "key"),
        default="serve",
        help="serve (the default); check: load every model and replay its golden images; "
        "doctor: look for what stands in the way; key: make an API key",
    )
    for name, field in Settings.model_fields.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            metavar="VALUE",
            help=f"{field.description} (default {field.default!s}) [{PREFIX}{name.upper()}]".replace("%", "%%"),
        )
    return parser


def _fail(reason: str, code: int = 1) -> int:
    print(f"resnet-serve: {reason}", file=sys.stderr)
    return code
