"""The models in service: which one a request gets, and why the others are not there."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from service.artifact import ModelCard
from service.batching import Batcher
from service.cam import Head
from service.costs import Costs
from service.errors import InvalidParameter, ModelUnavailable, Starting, UnknownModel
from service.loading import LoadedModel, Location
from service.metrics import Metrics
from service.runtime import Backend

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServedModel:
    """A loaded model with its queue: what a request is routed to."""

    name: str
    version: int
    card: ModelCard
    device: str
    head: Head | None
    costs: Costs
    golden_max_abs_diff: float | None
    batcher: Batcher
    backend: Backend


class Repository:
    """The models in service, and why the others are not."""

    def __init__(self, metrics: Metrics, max_queue: int) -> None:
        self._metrics = metrics
        self._max_queue = max_queue
        self._served: dict[tuple[str, int], ServedModel] = {}
        self.failed: dict[Location, str] = {}
        self.loading = True
        metrics.watch(self._waiting, self._in_flight)

    def __iter__(self) -> Iterator[ServedModel]:
        """The served models, by name and version."""
        return iter([self._served[key] for key in sorted(self._served)])

    def find(self, name: str, version: int | None) -> ServedModel:
        """The model a request asks for: the highest version by default, and the only model when the name is empty.

        Raises:
            Starting: models are still being loaded and this one may be among them.
            InvalidParameter: several models are served and none was named.
            ModelUnavailable: it is there but could not be taken into service.
            UnknownModel: there is no such model or version.
        """
        name = name or self._only_name()
        versions = [model for model in self if model.name == name and version in (None, model.version)]
        if versions:
            return versions[-1]
        if self.loading:
            raise Starting
        if any(each.name == name and version in (None, each.version) for each in self.failed):
            raise ModelUnavailable
        raise UnknownModel("There is no such model or version here; GET /models lists what is served.")

    def names(self) -> list[str]:
        """The names of all models, in service or not."""
        return sorted({model.name for model in self} | {location.name for location in self.failed})

    def _only_name(self) -> str:
        names = self.names()
        if len(names) > 1:
            raise InvalidParameter(f"model: several models are served; name one of {', '.join(names)}.")
        if self.loading or not names:
            raise Starting
        return names[0]

    def admit(self, model: LoadedModel, on_death: Callable[[str], None]) -> None:
        """Take a loaded model into service. To be called on the event loop."""
        name, version, card = model.location.name, model.location.version, model.card
        batcher = Batcher(
            str(model.location),
            model.backend.run,
            costs=model.costs,
            max_queue=self._max_queue,
            metrics=self._metrics,
            fixed_sizes=model.backend.device != "cpu",
        )
        self._metrics.in_service(model.location.name, version, card, model.backend.device)
        self._metrics.loaded(name, version, model.seconds, model.golden_max_abs_diff)
        self._metrics.costs(name, version, model.costs)
        batcher.start(asyncio.get_running_loop(), on_death)
        self._served[name, version] = ServedModel(
            name=name,
            version=version,
            card=card,
            device=model.backend.device,
            head=model.head,
            costs=model.costs,
            golden_max_abs_diff=model.golden_max_abs_diff,
            batcher=batcher,
            backend=model.backend,
        )

    def refuse(self, location: Location, reason: str) -> None:
        """Note that a model cannot be served, and why."""
        self.failed[location] = reason
        log.error("%s is not served: %s", location, reason)

    async def close(self, grace: float) -> None:
        """Answer what is queued, then free every model."""
        await asyncio.gather(*(model.batcher.stop(grace) for model in self))
        for model in self:
            model.backend.close()

    def _waiting(self) -> int:
        return sum(model.batcher.waiting for model in self)

    def _in_flight(self) -> int:
        return sum(model.batcher.waiting + model.batcher.running for model in self)
