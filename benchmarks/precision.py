"""float32, float16 and int8 of one network, by batch size and threads, in turns: `make bench-precision`.

    python -m benchmarks.precision                      the built-in digits, converted for it
    python -m benchmarks.precision models/NAME/*/model.onnx

Prints a Markdown table. Ratios are to the first artifact.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import onnxruntime

from model_export.cli import main as export
from model_export.errors import ExportError
from model_export.speed import Seconds, measure, processor
from model_export.verify import card_of
from service.cpus import available_cpus

PRECISIONS = ("fp32", "fp16", "int8")
BATCH_SIZES = (1, 16, 32)
ROUNDS = 15


def main() -> int:
    """Measure and print; the exit code."""
    options = _parser().parse_args()
    try:
        with _artifacts(options.models) as artifacts:
            _print_tables(artifacts, options.rounds)
    except ExportError as error:
        print(f"benchmarks.precision: {error}", file=sys.stderr)
        return 1
    return 0


@contextmanager
def _artifacts(models: list[Path]) -> Iterator[dict[str, Path]]:
    """The files that were named, or the digits at every precision, for as long as they are measured."""
    if models:
        yield {f"{path.parent.name} {card_of(path).precision}": path for path in models}
        return
    with tempfile.TemporaryDirectory() as folder:
        for precision in PRECISIONS:
            command = ["convert", "builtin:digits", "--name", precision, "--precision", precision, "--out", folder]
            if export(command):
                raise ExportError(f"the digits cannot be converted to {precision}")
        yield {precision: Path(folder) / precision / "1" / "model.onnx" for precision in PRECISIONS}


def _print_tables(artifacts: dict[str, Path], rounds: int) -> None:
    first = next(iter(artifacts))
    card = card_of(artifacts[first])
    size = card.input.height
    cpus = available_cpus()
    print(f"\n{card.architecture}, {size} × {size}; {datetime.now(UTC):%Y-%m-%d}, {processor()}, {cpus} CPUs, ", end="")
    print(f"onnxruntime {onnxruntime.__version__}, median of {rounds} rounds in turns\n")
    print("| threads | batch | " + " | ".join(f"{name}, ms | images/s | × {first}" for name in artifacts) + " |")
    print("| ---: | ---: |" + " ---: |" * (3 * len(artifacts)))
    for threads in sorted({1, cpus}):
        found = measure(artifacts, size, batch_sizes=BATCH_SIZES, rounds=rounds, threads=threads, progress=_progress)
        for batch in BATCH_SIZES:
            print(f"| {threads} | {batch} | " + " | ".join(_cells(found, name, first, batch) for name in found) + " |")


def _cells(found: dict[str, Seconds], name: str, first: str, batch: int) -> str:
    seconds = found[name][batch]
    return f"{seconds * 1000:.2f} | {batch / seconds:,.0f} | {found[first][batch] / seconds:.2f}"


def _progress(line: str) -> None:
    print(f"{line} …", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precision", description="The speed of each precision.")
    parser.add_argument("models", nargs="*", type=Path, metavar="MODEL.onnx", help="artifacts of one input size")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"turns for each artifact ({ROUNDS})")
    return parser


if __name__ == "__main__":
    sys.exit(main())
