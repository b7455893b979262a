"""Logits -> probabilities and the top k labels. Pure."""

import math
from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from service.errors import InternalError


class Prediction(TypedDict):
    """One line of an answer."""

    label: str
    index: int
    probability: float


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities of float32 logits `[classes]`, in float64 and shifted by the maximum so that nothing overflows."""
    # In place and by reductions: the methods of numpy that would read better take twice as long for ten classes.
    probabilities = logits.astype(np.float64)
    probabilities -= np.maximum.reduce(probabilities)
    np.exp(probabilities, out=probabilities)
    probabilities /= np.add.reduce(probabilities)
    return probabilities


def top_predictions(logits: NDArray[np.float32], labels: Sequence[str], top_k: int) -> list[Prediction]:
    """The `top_k` most probable classes of logits `[classes]`, best first, probabilities rounded to 6 places.

    Raises:
        InternalError: the model gave NaN or infinity, which no JSON number can say.
    """
    if not math.isfinite(np.add.reduce(logits, dtype=np.float64)):  # which no sum of finite float32 overflows
        raise InternalError from ValueError("the model gave logits that are not finite")
    probabilities = softmax(logits)
    best = (-probabilities).argsort(kind="stable")[:top_k]
    return [
        Prediction(label=labels[index], index=index, probability=round(probability, 6))
        for index, probability in zip(best.tolist(), probabilities[best].tolist(), strict=True)
    ]
