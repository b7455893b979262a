"""Logits to probabilities and labels."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.answer import most_probable, softmax, top_predictions
from service.errors import InternalError

logits_strategy = st.lists(st.floats(-1000, 1000, width=32), min_size=1, max_size=50)


@given(logits_strategy)
def test_probabilities_are_a_distribution_in_the_order_of_the_logits(values: list[float]) -> None:
    logits = np.array(values, dtype=np.float32)
    probabilities = softmax(logits)
    assert probabilities.sum() == pytest.approx(1)
    assert probabilities[logits.argmax()] == probabilities.max()


def test_each_index_gets_its_own_label() -> None:
    predictions = top_predictions(np.array([0.0, 2.0, 1.0], dtype=np.float32), ("a", "b", "c"), top_k=3)
    assert [(each["label"], each["index"]) for each in predictions] == [("b", 1), ("c", 2), ("a", 0)]
    assert [each["probability"] for each in predictions] == pytest.approx([0.665241, 0.244728, 0.090031])


@given(logits_strategy)
@example([3e38, -3e38])
def test_the_most_probable_class_has_the_largest_logit_and_the_first_predictions_probability(
    values: list[float],
) -> None:
    logits = np.array(values, dtype=np.float32)
    (first,) = top_predictions(logits, [""] * len(values), top_k=1)
    index, probability = most_probable(logits)
    assert logits[index] == logits.max()  # of two that differ by too little for a probability, too
    assert probability == pytest.approx(first["probability"], abs=1e-6)


def test_top_k_bounds_the_answer_and_ties_keep_the_index_order() -> None:
    predictions = top_predictions(np.zeros(5, dtype=np.float32), tuple("abcde"), top_k=2)
    assert [each["label"] for each in predictions] == ["a", "b"]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_are_our_failure(bad: float) -> None:
    with pytest.raises(InternalError):
        top_predictions(np.array([0.0, bad], dtype=np.float32), ("a", "b"), top_k=1)
    with pytest.raises(InternalError):
        most_probable(np.array([0.0, bad], dtype=np.float32))
