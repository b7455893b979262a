"""The conversion as one sequence: load, export, prove, reduce, prove again, card, write."""

import contextlib
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx

from model_export.card import Findings, golden_images, make_card
from model_export.checkpoints import Checkpoint, Given, read_checkpoint
from model_export.errors import ExportError
from model_export.evaluate import evaluate
from model_export.evidence import Evidence, Plan, gather
from model_export.graph import OPSET, export
from model_export.parity import compare, judge, reference_logits, standard_of
from model_export.precision import reduce, served_form
from model_export.sealing import write_artifact
from service.artifact import Accuracy, ModelCard
from service.folder import version_of

MODEL_FILE = "model.onnx"

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Target:
    """Where the artifact goes: `out/name/version/model.onnx`; the next free version when none is given."""

    name: str
    out: Path
    version: int | None = None


@dataclass(frozen=True)
class Converted:
    """A written artifact."""

    path: Path
    card: ModelCard


@dataclass(frozen=True)
class Order:
    """What is to be converted, and how.

    `source` is SOURCE of the command line, `given` what the caller says of it. `images` is a folder of real images for
    the verdict and golden replay, `labelled` one of images by class to measure the accuracy on, which stands in for
    `images` (`evidence.gather`).
    """

    source: str
    given: Given
    plan: Plan
    images: Path | None = None
    labelled: Path | None = None


def convert(order: Order, target: Target, progress: Progress) -> Converted:
    """Turn a checkpoint into an artifact, atomically: a complete, proved file appears, or nothing does.

    Raises:
        ExportError: the first thing that is wrong.
    """
    _check_name(target.name)
    folder = target.out / target.name
    if target.version is not None and (folder / str(target.version)).exists():
        raise ExportError(f"{folder / str(target.version)} is there already; choose another --version or --out")
    progress(f"reading {order.source}")
    checkpoint = read_checkpoint(order.source, order.given)
    for note in checkpoint.notes:
        progress(note)
    folder.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".converting-", dir=folder))
    try:
        with tempfile.TemporaryDirectory(prefix="resnet-export-") as scratch:
            evidence = gather(checkpoint, order.plan, order.images, order.labelled, Path(scratch))
            graph, findings = _prove(checkpoint, order.plan, evidence, Path(scratch), progress)
            progress("writing")
            card = make_card(target.name, checkpoint, findings)
            card = write_artifact(onnx.load(graph), card, staging / MODEL_FILE)
        return Converted(_publish(staging, folder, target.version) / MODEL_FILE, card)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        with contextlib.suppress(OSError):  # not empty: it holds versions
            folder.rmdir()


def _prove(
    checkpoint: Checkpoint, plan: Plan, evidence: Evidence, scratch: Path, progress: Progress
) -> tuple[Path, Findings]:
    """The graph at the precision that was asked for, and what was found out about it on the way.

    The float32 graph is proved first, whatever the precision: what a reduction costs is then the reduction's alone.
    """
    network, recipe = checkpoint.build(), checkpoint.preprocessing
    expected = reference_logits(network, recipe, evidence.verdict)
    progress(f"exporting {checkpoint.architecture.name} to ONNX, opset {OPSET}")
    float32 = scratch / "float32.onnx"
    onnx.save(export(served_form(network, recipe, checkpoint.in_channels, plan), recipe.crop), float32)
    progress("comparing onnxruntime with torch")
    parity = judge(float32, expected, evidence.verdict)
    graph, quantisation = reduce(float32, plan, evidence, scratch, progress)
    standard = standard_of(plan.precision, plan.min_agreement)
    if plan.precision != "fp32":
        progress(f"comparing {plan.precision} with torch in float32")
        parity = judge(graph, expected, evidence.verdict, standard)
    progress("recording golden images")
    golden, pixels, logits = golden_images(evidence.real, network, recipe)
    stated = max(parity.tolerance, compare(graph, logits, pixels, standard).tolerance)
    return graph, Findings(
        precision=plan.precision,
        parity=parity.model_copy(update={"tolerance": stated}),
        accuracy=_accuracy(checkpoint, evidence, float32, graph),
        quantisation=quantisation,
        golden=golden,
    )


def _accuracy(checkpoint: Checkpoint, evidence: Evidence, float32: Path, graph: Path) -> Accuracy | None:
    """Measured where there are labelled images; the trainer's own word holds for the float32 graph alone."""
    if evidence.labelled is None:
        return checkpoint.accuracy if graph == float32 else None
    found = evaluate(graph, evidence.labelled, checkpoint.preprocessing)
    if graph == float32:
        return found
    before = evaluate(float32, evidence.labelled, checkpoint.preprocessing)
    return found.model_copy(update={"float32_top1": before.top1})


def _check_name(name: str) -> None:
    if not name or name.startswith(".") or "/" in name or name != name.strip():
        raise ExportError(f"{name!r} cannot be a model's name: it becomes a folder and part of a URL")


def _publish(staging: Path, folder: Path, wanted: int | None) -> Path:
    """Rename the staging folder to its version: readers see all of it or nothing."""
    staging.chmod(0o755)
    while True:
        final = folder / str(wanted or _next_version(folder))
        try:
            return staging.rename(final)
        except OSError as error:
            # Another conversion may have taken the same number a moment ago.
            if wanted is not None or not final.exists():
                raise ExportError(
                    f"cannot write {final}: {error.strerror}; choose another --version or --out"
                ) from error


def _next_version(folder: Path) -> int:
    found = max((version_of(each.name) or 0 for each in folder.iterdir()), default=0) + 1
    if version_of(str(found)) is None:
        raise ExportError(f"{folder} has the highest version that there can be: give --version")
    return found
