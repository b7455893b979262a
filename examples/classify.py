"""Classify images over HTTP with httpx: python examples/classify.py [--url URL] IMAGE ...

The two classes are made to be copied. 429 and 503 are repeated, no sooner than Retry-After says; every other error is
an exception with the server's own explanation.
"""

import argparse
import asyncio
import time
from pathlib import Path
from typing import Any, Self

import httpx2 as httpx

ATTEMPTS = 5
REPEATED = (429, 503)


class Refused(Exception):
    """The server's answer was an error: its `code` is stable, its text is for people."""

    def __init__(self, problem: dict[str, Any]) -> None:
        super().__init__(f"{problem['title']}: {problem['detail']}")
        self.code: str = problem["code"]


class Classifier:
    """Blocking. `classify` gives the predictions for an encoded image, most probable first."""

    def __init__(self, url: str, timeout: float = 30) -> None:
        self._client = httpx.Client(base_url=url, timeout=timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def classify(self, image: bytes, **query: Any) -> list[dict[str, Any]]:
        for attempt in range(ATTEMPTS):
            response = self._client.post("/classify", content=image, params=query)
            if response.status_code not in REPEATED or attempt == ATTEMPTS - 1:
                return _predictions(response)
            time.sleep(_pause(response))
        raise AssertionError("unreachable")


class AsyncClassifier:
    """The same for asyncio. One connection pool for all calls; `classify` may run many times at once."""

    def __init__(self, url: str, timeout: float = 30) -> None:
        self._client = httpx.AsyncClient(base_url=url, timeout=timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def classify(self, image: bytes, **query: Any) -> list[dict[str, Any]]:
        for attempt in range(ATTEMPTS):
            response = await self._client.post("/classify", content=image, params=query)
            if response.status_code not in REPEATED or attempt == ATTEMPTS - 1:
                return _predictions(response)
            await asyncio.sleep(_pause(response))
        raise AssertionError("unreachable")


def _predictions(response: httpx.Response) -> list[dict[str, Any]]:
    if response.status_code != 200:
        raise Refused(response.json())
    predictions: list[dict[str, Any]] = response.json()["predictions"]
    return predictions


def _pause(response: httpx.Response) -> float:
    return float(response.headers.get("retry-after", 1))


def main() -> None:
    """Print the most probable label of each image, asked for all at once."""
    parser = argparse.ArgumentParser(description="Classify images over HTTP.")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    options = parser.parse_args()
    for path, (best, *_) in zip(options.images, asyncio.run(_all(options.url, options.images)), strict=True):
        print(f"{path.name}: {best['label']} {best['probability']:.3f}")


async def _all(url: str, images: list[Path]) -> list[list[dict[str, Any]]]:
    async with AsyncClassifier(url) as classifier:
        return await asyncio.gather(*(classifier.classify(path.read_bytes()) for path in images))


if __name__ == "__main__":
    main()
