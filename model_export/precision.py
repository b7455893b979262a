"""From the proved float32 graph to the precision that was asked for."""

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
from torch import nn

from model_export.errors import ExportError
from model_export.evidence import Evidence, Plan
from model_export.graph import ServedNetwork, served
from model_export.half import to_half
from model_export.images import Pixels
from model_export.integer_form import integer_form
from model_export.parity import Logits, agreement, kl_divergence
from model_export.quantise import find_ranges, layer_errors, quantise
from service.artifact import CalibrationMethod, CalibrationTrial, Preprocessing, Quantisation
from service.cpus import available_cpus
from service.runtime import open_onnx

TRIAL_BATCH = 16

Progress = Callable[[str], None]


def served_form(network: nn.Module, recipe: Preprocessing, in_channels: int, plan: Plan) -> ServedNetwork:
    """The network with its normalisation, as the plan's kernels want it; the same function in each form."""
    if plan.precision == "int8":
        return integer_form(network, recipe, in_channels, plan.target)
    return served(network, recipe, in_channels)


def reduce(
    float32: Path, plan: Plan, evidence: Evidence, scratch: Path, progress: Progress
) -> tuple[Path, Quantisation | None]:
    """A file with the graph at the plan's precision, and how it came to be int8; float32 is what it is already.

    Raises:
        ExportError: there are no images to calibrate on.
    """
    if plan.precision == "fp32":
        return float32, None
    if plan.precision == "int8":
        return _to_int8(float32, plan, evidence, scratch, progress)
    progress("converting to float16")
    path = scratch / "float16.onnx"
    onnx.save(to_half(onnx.load(float32)), path)
    return path, None


def _to_int8(
    float32: Path, plan: Plan, evidence: Evidence, scratch: Path, progress: Progress
) -> tuple[Path, Quantisation]:
    pixels = evidence.calibration
    if pixels is None:
        raise ExportError("int8 needs images to calibrate on: give --calibration DIR")
    expected = _logits(float32, pixels)
    trials: dict[Path, CalibrationTrial] = {}
    for method in get_args(CalibrationMethod) if plan.method == "auto" else (plan.method,):
        progress(f"calibrating on {len(pixels)} images, {method}")
        path = scratch / f"{method}.onnx"
        quantise(float32, find_ranges(float32, pixels, method, plan.target, scratch), plan.target, path)
        got = _logits(path, pixels)
        trials[path] = CalibrationTrial(
            method=method, top1_agreement=agreement(expected, got), kl_divergence=kl_divergence(expected, got)
        )
    # Chosen on the calibration images: those of the verdict see one graph only, and cannot flatter it.
    best = max(trials, key=lambda path: (trials[path].top1_agreement, -trials[path].kl_divergence))
    progress(f"measuring each layer of the {trials[best].method} graph")
    return best, Quantisation(
        target=plan.target,
        method=trials[best].method,
        images=len(pixels),
        trials=tuple(trials.values()),
        layers=layer_errors(float32, best, evidence.verdict, scratch),
    )


def _logits(model: Path, pixels: Pixels) -> Logits:
    backend = open_onnx(model, "cpu", available_cpus())
    starts = range(0, len(pixels), TRIAL_BATCH)
    return np.concatenate([backend.run(pixels[start : start + TRIAL_BATCH]).logits for start in starts])
