"""The models in service: which one a request gets, and why the others are not there."""

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from service.artifact import ModelCard
from service.batching import Batcher
from service.cache import Cache
from service.cam import Head
from service.costs import Costs
from service.errors import InvalidParameter, ModelUnavailable, Starting, UnknownModel
from service.folder import Location
from service.loading import LoadedModel
from service.memory import give_back
from service.metrics import Metrics
from service.runtime import Backend
from service.splits import Alias, Split, Version
from service.watched import Fingerprint

log = logging.getLogger(__name__)


@dataclass(eq=False)
class ServedModel:
    """A loaded model with its queue: what a request is routed to, and holds until it is answered.

    `number` is its own: a version that is loaded anew gets another one.
    """

    name: str
    version: int
    location: Location
    files: Fingerprint
    card: ModelCard
    device: str
    head: Head | None
    costs: Costs
    golden_max_abs_diff: float | None
    batcher: Batcher
    backend: Backend
    number: int = field(default_factory=itertools.count(1).__next__)
    _holders: int = 0
    _released: asyncio.Event = field(default_factory=asyncio.Event)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the model in memory and its queue open, also when another takes its place meanwhile."""
        self._holders += 1
        try:
            yield
        finally:
            self._holders -= 1
            if not self._holders:
                self._released.set()

    async def retire(self, grace: float) -> None:
        """Answer the requests that hold it, then free its memory; after `grace` seconds what is left gets 503."""
        give_up = time.monotonic() + grace
        while self._holders and time.monotonic() < give_up:
            self._released.clear()
            try:
                await asyncio.wait_for(self._released.wait(), give_up - time.monotonic())
            except TimeoutError:
                log.warning("%s version %d goes with %d requests unanswered", self.name, self.version, self._holders)
        await self.batcher.stop(max(0.1, give_up - time.monotonic()))
        self.backend.close()
        await asyncio.to_thread(give_back)


class Repository:
    """The models in service, and why the others are not. Used on the event loop only."""

    def __init__(
        self,
        metrics: Metrics,
        max_queue: int,
        canaries: Mapping[str, Split] | None = None,
        shadows: Mapping[str, Split] | None = None,
        cache: Cache | None = None,
        patience: float = 10.0,
    ) -> None:
        """`patience`: seconds that a run may take before its device counts as hung.

        `canaries`, `shadows`: by model, which share of the requests without a version another one answers or sees.

        `cache` is told when a model's results are of no more use.
        """
        self._cache = cache
        self._shadows = shadows or {}
        self._metrics = metrics
        self._max_queue = max_queue
        self._patience = patience
        self._canaries = canaries or {}
        self._served: dict[tuple[str, int], ServedModel] = {}
        self._retiring: set[ServedModel] = set()
        self.aliases: dict[str, dict[Alias, int]] = {}
        self.failed: dict[Location, str] = {}
        self.unloaded: set[Location] = set()
        self.loading = True
        metrics.watch(self._waiting, self._in_flight)

    def __iter__(self) -> Iterator[ServedModel]:
        """The served models, by name and version."""
        return iter([self._served[key] for key in sorted(self._served)])

    def find(self, name: str, version: Version | None = None, key: str = "") -> ServedModel:
        """The model a request asks for; it must be held before the event loop turns.

        Args:
            name: may be empty where only one model is served.
            version: or an alias; where it is None: the canary's for its share of the callers, then that of the alias
                `stable`, then the highest.
            key: the caller's, which decides whether it is among that share; nobody without a key is.

        Raises:
            Starting: models are still being loaded and this one may be among them.
            InvalidParameter: several models are served and none was named.
            ModelUnavailable: it is there but could not be taken into service.
            UnknownModel: there is no such model or version.
        """
        name = name or self._only_name()
        served = self._default(name, key) if version is None else self.version_of(name, version)
        if served is not None:
            return served
        if self.loading:
            raise Starting
        if any(each.name == name and version in (None, each.version) for each in self.failed):
            raise ModelUnavailable
        raise UnknownModel("There is no such model or version here; GET /models lists what is served.")

    def version_of(self, name: str, version: Version) -> ServedModel | None:
        """A version, or the one an alias stands for, if it is served."""
        number = version if isinstance(version, int) else self.aliases.get(name, {}).get(version, 0)
        return self._served.get((name, number))

    def shadow_of(self, model: ServedModel, key: str) -> ServedModel | None:
        """The version that is to see, on the side, what this one answers to the caller with this key."""
        split = self._shadows.get(model.name)
        shadow = self.version_of(model.name, split.version) if split and split.takes(key) else None
        return None if shadow is model else shadow

    def _default(self, name: str, key: str) -> ServedModel | None:
        canary = self._canaries.get(name)
        if canary and key and canary.takes(key) and (served := self.version_of(name, canary.version)):
            return served
        if stable := self.version_of(name, "stable"):
            return stable
        newest = max((version for served, version in self._served if served == name), default=0)
        return self._served.get((name, newest))

    def sole(self, name: str) -> ServedModel | None:
        """What every request for this model gets that asks for no version; None where it depends on the caller's key,
        or another version sees it too."""
        return None if name in self._canaries or name in self._shadows else self._default(name, "")

    def names(self) -> list[str]:
        """The names of all models, in service or not."""
        return sorted({model.name for model in self} | {location.name for location in self.failed})

    def _only_name(self) -> str:
        if len(self._served) == 1:
            return next(iter(self._served))[0]
        names = sorted({name for name, _ in self._served})
        if len(names) > 1:
            raise InvalidParameter(f"model: several models are served; name one of {', '.join(names)}.")
        if names:
            return names[0]
        raise Starting if self.loading else ModelUnavailable

    def admit(self, model: LoadedModel, on_death: Callable[[str], None]) -> ServedModel | None:
        """Take a loaded model into service; what it replaces is no longer found and has to be retired."""
        name, version, card = model.location.name, model.location.version, model.card
        batcher = Batcher(
            str(model.location),
            model.backend.run,
            costs=model.costs,
            max_queue=self._max_queue,
            metrics=self._metrics,
            fixed_sizes=model.backend.device != "cpu",
            patience=self._patience,
        )
        batcher.start(asyncio.get_running_loop(), on_death)
        replaced = self.withdraw(name, version)
        self._metrics.in_service(name, version, card, model.backend.device)
        self._metrics.loaded(name, version, model.seconds, model.golden_max_abs_diff)
        self._metrics.costs(name, version, model.costs)
        self._served[name, version] = ServedModel(
            name=name,
            version=version,
            location=model.location,
            files=model.files,
            card=card,
            device=model.backend.device,
            head=model.head,
            costs=model.costs,
            golden_max_abs_diff=model.golden_max_abs_diff,
            batcher=batcher,
            backend=model.backend,
        )
        self.failed.pop(model.location, None)
        return replaced

    def withdraw(self, name: str, version: int) -> ServedModel | None:
        """Route no more requests to a version; it has to be retired."""
        served = self._served.pop((name, version), None)
        if served is not None:
            self._metrics.out_of_service(name, version)
        return served

    async def retire(self, model: ServedModel, grace: float) -> None:
        """Answer what a withdrawn model still has to answer, and free it."""
        self._retiring.add(model)
        try:
            await model.retire(grace)
        finally:
            self._retiring.discard(model)
            if self._cache is not None:
                self._cache.forget(model.number)

    def refuse(self, location: Location, reason: str, *, mismatch: bool = False) -> None:
        """Note that a model cannot be loaded, and why; a version in service goes on.

        `mismatch`: it does not answer as it was trained.
        """
        self.failed[location] = reason
        self._metrics.load_failed(location.name, location.version, "golden" if mismatch else "other")
        log.error("%s is not loaded: %s", location, reason)

    def watch(self, elapsed: float) -> None:
        """Look after every device, `elapsed` seconds after the last look."""
        for model in [*self, *self._retiring]:
            model.batcher.watch(elapsed)

    async def close(self, grace: float) -> None:
        """Answer what is queued, then free every model."""
        models = [*self, *self._retiring]
        await asyncio.gather(*(model.batcher.stop(grace) for model in models))
        for model in models:
            model.backend.close()

    def _waiting(self) -> int:
        return sum(model.batcher.waiting for model in [*self, *self._retiring])

    def _in_flight(self) -> int:
        return sum(model.batcher.waiting + model.batcher.running for model in [*self, *self._retiring])
