"""`resnet-serve`: serve the models, or check them.

Exit codes: 0 done; 1 failed, with one line on stderr; 2 wrong usage.
"""

import argparse
import sys
from collections.abc import Sequence

from service.app import create_app
from service.check import check
from service.loading import RepositoryError
from service.logs import configure_logging
from service.memory import use_few_arenas
from service.server import ListenError, serve
from service.settings import PREFIX, Settings, SettingsError, read_settings

EPILOG = "Every flag is also an environment variable of the name in brackets; the flag wins."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the return value is the exit code."""
    flags = vars(_parser().parse_args(arguments))
    command = flags.pop("command")
    try:
        settings = read_settings({name: value for name, value in flags.items() if value is not None})
    except SettingsError as error:
        return _fail(str(error), code=2)
    try:
        return _check(settings) if command == "check" else _serve(settings)
    except (ListenError, RepositoryError) as error:
        return _fail(str(error))


def _serve(settings: Settings) -> int:
    use_few_arenas()
    configure_logging(settings.log_format, settings.log_level)
    reason = serve(create_app(settings), settings)
    return _fail(reason) if reason else 0


def _check(settings: Settings) -> int:
    failed = 0
    for verdict in check(settings):
        print(verdict)
        failed += verdict.model is None
    return _fail(f"{failed} of the models cannot be served") if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="resnet-serve", description="Serve ONNX classifiers over HTTP.", epilog=EPILOG
    )
    parser.add_argument(
        "command",
        nargs="?",
        choices=("serve", "check"),
        default="serve",
        help="serve (the default), or load every model, replay its golden images, print a table and exit",
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
