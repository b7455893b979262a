"""What a simple request asks, ready to run, and its answer as it goes over the wire. Pure.

Two kinds of simple request are answered by worker processes (`http_worker.py`): `POST /classify` for the labels of an
encoded image, and `POST /v2/models/{name}/infer` for what the protocol has of a tensor of one image.
"""

import email.utils
import time
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import orjson

from service.answer import Prediction, labels_in_answer, predictions_body
from service.artifact import ModelCard
from service.body import FormLimits
from service.content import Content, message, said_of_connection
from service.exchange import Exchange
from service.image import PROMPT, is_within, preprocess
from service.inference_protocol import Inference, Signature
from service.inference_rest import SentAs, parse, render
from service.plain_head import MOST_LABELS, NotSimple, SimpleHead, SimpleRequest
from service.tickets import Logits, Pixels
from service.uploads import image_in

_OK = b"HTTP/1.1 200 OK\r\n"
_JSON = [(b"content-type", b"application/json")]


class Question(NamedTuple):
    """What came under `head`: an image, uint8 `[H, W, 3]`, and how to answer: with the `top_k` most probable labels, or
    as `inference` says, to a caller whose Accept-Encoding is `accept`."""

    head: SimpleHead
    pixels: Pixels
    top_k: int
    inference: Inference | None = None
    accept: str = ""


def read_question(asked: SimpleRequest, card: ModelCard, signature: Signature, max_pixels: int) -> Question:
    """What a request asks of the model with this card and signature; an image is decoded.

    Raises:
        ServiceError, NotSimple: it is for the server to answer.
    """
    head = asked.head
    if head.json_length is None:
        top_k = labels_in_answer(head.top_k, len(card.labels))
        image = _image_in_form(asked, card) if head.is_form else asked.body
        return Question(head, preprocess(image, card.preprocessing, max_pixels), top_k)
    sent_as = SentAs.of(head.headers)
    inference = parse(asked.body, sent_as.header_length, signature)
    if not isinstance(inference.images, np.ndarray) or inference.timeout_us or inference.level:
        raise NotSimple
    if inference.wanted.classes > MOST_LABELS:
        raise NotSimple
    return Question(head, inference.images[0], 1, inference, sent_as.accept)


def answer(
    question: Question, logits: Logits, predictions: list[Prediction], signature: Signature, exchange: Exchange
) -> bytes:
    """A whole answer with status 200, with the headers that the server's own have.

    Args:
        question: what was asked.
        logits: float32 `[classes]` of its image.
        predictions: the most probable labels, as many as were asked for.
        signature: of the model.
        exchange: is finished by it, just before the headers are made.
    """
    if question.inference is None:
        body = orjson.dumps(predictions_body(exchange.model, int(exchange.version), predictions))
        content = Content(_JSON, body)
    else:
        about = {"model_name": exchange.model, "model_version": exchange.version, "id": question.inference.id}
        content = render(logits[None], question.inference.wanted, signature, about, question.accept)
    exchange.finish(200)
    headers = [(b"date", _date(int(time.time()))), *content.headers, *exchange.headers()]
    said = said_of_connection(question.head.http_version, keep_alive=question.head.keep_alive)
    return message(_OK, headers, content.body, connection=said)


def _image_in_form(asked: SimpleRequest, card: ModelCard) -> bytes:
    size = asked.head.length  # no more than an image may have, so its limits are kept
    image = image_in(asked.body, asked.head.content_type, FormLimits(size, files=1))
    if not is_within(PROMPT, image, card.preprocessing):
        raise NotSimple
    return image


@lru_cache(1)
def _date(second: int) -> bytes:
    return email.utils.formatdate(second, usegmt=True).encode()
