"""Logits -> probabilities and the top k labels. Pure."""

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from service.errors import InternalError, InvalidParameter

DEFAULT_TOP_K = 5


class Prediction(TypedDict):
    """One line of an answer."""

    label: str
    index: int
    probability: float


def labels_in_answer(top_k: int | None, classes: int) -> int:
    """How many labels an answer has: as many as asked for, or DEFAULT_TOP_K, or all of fewer classes.

    Raises:
        InvalidParameter: more were asked for than there are.
    """
    if top_k is not None and top_k > classes:
        raise InvalidParameter(f"top_k: the model has {classes} classes.")
    return top_k or min(DEFAULT_TOP_K, classes)


def predictions_body(model: str, version: int, predictions: list[Prediction]) -> dict[str, Any]:
    """The answer for one image (contract section 5)."""
    return {"model": model, "version": version, "predictions": predictions}


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities of float32 logits `[..., classes]`, in float64 and shifted by the maximum against overflow."""
    # In place and by reductions: the methods of numpy that would read better take twice as long for ten classes.
    probabilities = logits.astype(np.float64)
    probabilities -= np.maximum.reduce(probabilities, axis=-1, keepdims=True)
    np.exp(probabilities, out=probabilities)
    probabilities /= np.add.reduce(probabilities, axis=-1, keepdims=True)
    return probabilities


def top_predictions(logits: NDArray[np.float32], labels: Sequence[str], top_k: int) -> list[Prediction]:
    """The `top_k` most probable classes of logits `[classes]`, best first, probabilities rounded to 6 places.

    Raises:
        InternalError: the model gave NaN or infinity, which no JSON number can say.
    """
    return top_predictions_of_each(logits[None], labels, (top_k,))[0]


def most_probable(logits: NDArray[np.float32]) -> tuple[int, float]:
    """Index and probability of the most probable class of logits `[classes]`.

    Raises:
        InternalError: the model gave NaN or infinity.
    """
    _refuse_what_is_not_finite(logits)
    best = int(logits.argmax())
    return best, 1 / float(np.add.reduce(np.exp(logits - np.float64(logits[best]))))


def top_predictions_of_each(
    logits: NDArray[np.float32], labels: Sequence[str], top_k: Sequence[int]
) -> list[list[Prediction]]:
    """The same for the rows of logits `[n, classes]`, with a `top_k` for each; all fail together."""
    _refuse_what_is_not_finite(logits)
    probabilities = softmax(logits)
    best = (-probabilities).argsort(kind="stable")[:, : max(top_k)]
    values = probabilities[np.arange(len(logits))[:, None], best]
    return [
        [
            Prediction(label=labels[index], index=index, probability=round(probability, 6))
            for index, probability in zip(indices[:count], row[:count], strict=True)
        ]
        for indices, row, count in zip(best.tolist(), values.tolist(), top_k, strict=True)
    ]


def _refuse_what_is_not_finite(logits: NDArray[np.float32]) -> None:
    if not np.isfinite(np.add.reduce(logits, axis=None, dtype=np.float64)):  # which finite float32 cannot overflow
        raise InternalError from ValueError("the model gave logits that are not finite")
