"""Which versions are in service: brought in line with the folder of models at the start, by polling, or on request.

A version is loaded, replayed and warmed beside the traffic; then it takes over in one step, and what it replaces
answers what it has and is freed. One that fails changes nothing but its own line in `/models`. The folder is the only
state: a replica that is killed comes back with the same versions and aliases.
"""

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from pydantic import RootModel, ValidationError

from service.artifact import first_problem
from service.errors import InvalidParameter, InvalidRequest, ServiceError, UnknownModel
from service.folder import Location, RepositoryError, discover
from service.golden import GoldenMismatch
from service.lifecycle import EMPTY, FAILED, READY, Lifecycle
from service.loading import Timed, describe_failure, load
from service.opening import Opener, state
from service.repository import Repository, ServedModel
from service.runtime import DeviceError
from service.settings import Settings
from service.splits import Alias
from service.watched import Fingerprint
from service.workers import Offered, Workers

log = logging.getLogger(__name__)

ALIASES_NAME = "aliases.json"


class AliasesFile(RootModel[dict[Alias, int]]):
    """`models/<name>/aliases.json`: version by alias, as in `{"stable": 1}`."""


class Control:
    """Loads and unloads, one model at a time."""

    def __init__(
        self, settings: Settings, opener: Opener, repository: Repository, lifecycle: Lifecycle, workers: Workers
    ) -> None:
        self._folder = settings.models
        self._mode = settings.model_control
        self._poll_seconds = settings.model_poll_ms / 1000
        self._max_batch = settings.max_batch_size
        self._drain_seconds = settings.drain_timeout_ms / 1000
        self._opener = opener
        self._repository = repository
        self._lifecycle = lifecycle
        self._workers = workers
        self._default_model = settings.default_model
        self._tried: dict[Location, Fingerprint] = {}
        self._lock = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()
        self._stuck: set[str] = set()
        self._proved = False

    async def start(self) -> None:
        """Load everything in the folder; without a model that can be served, or without the device, give up."""
        try:
            found = await asyncio.to_thread(self._scan)
            if self._mode == "none":
                self._refuse_without_the_default(found or discover(self._folder))  # raises, and says what to do
            async with self._changing():
                for location, seen in found.items():
                    await self._load(location, seen, self._lifecycle.enter)
                self._repository.loading = False
                await self._move_aliases()
                self._judge()
        except (RepositoryError, DeviceError) as error:
            self._lifecycle.fail(str(error))
        except Exception as error:  # otherwise the server would stay in its loading phase for ever
            log.critical("loading failed", exc_info=error)
            self._lifecycle.fail(f"loading failed: {describe_failure(error)}")

    def _refuse_without_the_default(self, found: Iterable[Location]) -> None:
        names = {location.name for location in found}
        if self._default_model and self._default_model not in names:
            raise RepositoryError(
                f"SERVICE_DEFAULT_MODEL={self._default_model} is not in {self._folder}, where there is "
                f"{', '.join(sorted(names))}"
            )

    async def watch(self) -> None:
        """Look at the folder again and again, and load what has changed and is not being written any more."""
        before: Mapping[Location, Fingerprint] = {}
        while True:
            await asyncio.sleep(self._poll_seconds)
            found = await asyncio.to_thread(self._scan)
            settled = {location: each for location, each in found.items() if before.get(location) == each}
            before = found
            if found:  # a volume that is gone for a moment takes no model with it
                await self._poll(settled, gone=self._tried.keys() - found.keys())

    async def _poll(self, settled: Mapping[Location, Fingerprint], gone: set[Location]) -> None:
        try:
            async with self._changing():
                await self._bring_in_line(settled, gone)
        except Exception:  # the next look may find the folder in order again
            log.exception("the folder of models could not be followed")

    async def load(self, name: str, version: int | None = None) -> None:
        """Load what is new, changed or failed before of a model, and withdraw the versions that are gone.

        Raises:
            InvalidRequest: models are not controlled by request, or a version cannot be loaded.
            UnknownModel: there is no such model or version in the folder.
        """
        self._refuse_unless_explicit("load", name)
        async with self._changing():
            every = await asyncio.to_thread(self._scan)
            found = {each: seen for each, seen in every.items() if _is(each, name, version)}
            if every:  # a volume that is gone for a moment takes nothing with it
                self._repository.unloaded &= every.keys()
            if not found:
                raise UnknownModel("There is no such model or version in the folder of models.")
            for location in found.keys() & self._repository.failed.keys():
                self._tried.pop(location, None)
            await self._bring_in_line(
                found, gone={each for each in self._tried.keys() - every.keys() if _is(each, name, version)}
            )
            reasons = [
                f"{each}: {reason}" for each, reason in self._repository.failed.items() if _is(each, name, version)
            ]
        if reasons:
            raise InvalidRequest(f"failed to load {'; '.join(reasons)}")

    async def unload(self, name: str, version: int | None = None) -> None:
        """Withdraw a model or one version; returns when its requests are answered and its memory is free.

        Raises:
            InvalidRequest: models are not controlled by request.
            UnknownModel: it is not known.
        """
        self._refuse_unless_explicit("unload", name)
        async with self._changing():
            known = {each for each in self._tried if _is(each, name, version)}
            if not known:
                raise UnknownModel("There is no such model or version here; GET /models lists what is served.")
            await self._workers.recall()
            retiring = [task for each in known if (task := self._withdraw(each))]
            self._repository.unloaded |= known
            await self._move_aliases()
            self._judge()
        await asyncio.gather(*map(asyncio.shield, retiring))

    async def move_alias(self, name: str, alias: Alias, version: int | None) -> None:
        """Let an alias stand for a version that is in service, or for none; it is written to the folder first.

        Raises:
            InvalidRequest: models are not controlled by request, or the folder cannot be written to.
            InvalidParameter: the version is not in service.
            UnknownModel: the model is not in service.
        """
        self._refuse_unless_explicit("alias", name)
        async with self._changing():
            if name not in self._repository.names():
                raise UnknownModel("There is no such model here; GET /models lists what is served.")
            if version is not None and self._repository.version_of(name, version) is None:
                raise InvalidParameter(f"version: version {version} is not in service, so no alias moves to it.")
            aliases = {key: each for key, each in self._repository.aliases.get(name, {}).items() if key != alias}
            if version is not None:
                aliases[alias] = version
            path = self._folder / name / ALIASES_NAME
            try:
                await asyncio.to_thread(_write_aliases, path, aliases)
            except OSError as error:
                raise InvalidRequest(f"{path} cannot be written, so no alias moves: {error.strerror}") from error
            await self._workers.recall()
            self._repository.aliases[name] = aliases
        log.info("alias %s of %s is %s", alias, name, version)

    @asynccontextmanager
    async def _changing(self) -> AsyncIterator[None]:
        """Change what is served, and let the workers have what is served then; they are recalled before it changes."""
        async with self._lock:
            try:
                yield
            finally:
                await self._offer()

    async def _offer(self) -> None:
        await self._workers.offer([each for name in self._repository.names() if (each := self._offered(name))])

    def _offered(self, name: str) -> Offered | None:
        """What workers are to answer for a model that they may answer for."""
        model = self._repository.sole(name)
        if model is None or not self._workers.pay(model):
            return None
        try:
            unnamed = self._repository.find(self._default_model).name
        except ServiceError:
            unnamed = ""
        return Offered(model, (name, "") if name == unnamed else (name,))

    def _refuse_unless_explicit(self, action: str, name: str) -> None:
        if self._mode != "explicit":
            raise InvalidRequest(
                f"explicit {action} of {name[:64]!r} is not allowed: SERVICE_MODEL_CONTROL is {self._mode}"
            )

    async def _bring_in_line(self, found: Mapping[Location, Fingerprint], gone: set[Location]) -> None:
        changed = {location: each for location, each in found.items() if self._tried.get(location) != each}
        for location, seen in changed.items():
            await self._load(location, seen, lambda phase, where: log.debug("%s: %s", where, phase))
        if gone:
            await self._workers.recall()
        for location in gone:  # last, so that the version which takes over is there
            log.info("%s is gone from the folder", location)
            self._withdraw(location)
        await self._move_aliases()
        if changed or gone:
            self._judge()

    async def _load(self, location: Location, seen: Fingerprint, tell: Callable[[str, str], None]) -> None:
        self._tried[location] = seen
        self._repository.unloaded.discard(location)
        in_service = [Timed(each.card, each.device, each.costs) for each in self._repository]
        work = partial(
            load,
            location,
            self._opener,
            self._max_batch,
            lambda phase: tell(phase, str(location)),
            timed=in_service,
            beside_traffic=bool(in_service) and not self._repository.loading,
        )
        # A thread of its own, because it may lower its priority.
        thread = ThreadPoolExecutor(1, thread_name_prefix="load")
        try:
            loaded = await asyncio.get_running_loop().run_in_executor(thread, work)
        except Exception as error:  # whatever is wrong with one model, the others are served
            if isinstance(error, DeviceError) and self._repository.loading:
                raise
            mismatch = isinstance(error, GoldenMismatch)
            self._repository.refuse(location, describe_failure(error), mismatch=mismatch)
            return
        finally:
            thread.shutdown(wait=False)
        await self._workers.recall()
        replaced = self._repository.admit(loaded, self._lifecycle.fail)
        log.info("%s is in service after %.2f s", location, loaded.seconds)
        if replaced is not None:
            self._retire(replaced)
        await self._offer()  # the next one may take a while to load

    def _withdraw(self, location: Location) -> asyncio.Task[None] | None:
        self._tried.pop(location, None)
        self._repository.failed.pop(location, None)
        withdrawn = self._repository.withdraw(location.name, location.version)
        return self._retire(withdrawn) if withdrawn is not None else None

    def _retire(self, model: ServedModel) -> asyncio.Task[None]:
        task = asyncio.create_task(self._repository.retire(model, self._drain_seconds))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)
        return task

    async def _move_aliases(self) -> None:
        """Move each alias to where its file says, if that version is in service; it stays where it is otherwise."""
        wanted = await asyncio.to_thread(self._read_aliases, {location.name for location in self._tried})
        for name in self._repository.aliases.keys() | wanted.keys():
            before = self._repository.aliases.get(name, {})
            after: dict[Alias, int] = {}
            for alias, version in wanted.get(name, {}).items():
                ready = self._repository.version_of(name, version) is not None
                self._say_if_stuck(f"alias {alias} of {name}: version {version} is not in service", stuck=not ready)
                target = version if ready else before.get(alias, 0)
                if self._repository.version_of(name, target) is not None:
                    after[alias] = target
            if after != before:
                await self._workers.recall()
            self._repository.aliases[name] = after

    def _say_if_stuck(self, complaint: str, *, stuck: bool) -> None:
        """Once, not at every look at the folder."""
        if stuck and complaint not in self._stuck:
            log.warning("%s, so it does not move", complaint)
        (self._stuck.add if stuck else self._stuck.discard)(complaint)

    def _read_aliases(self, names: set[str]) -> dict[str, dict[Alias, int]]:
        found: dict[str, dict[Alias, int]] = {}
        for name in names:
            path = self._folder / name / ALIASES_NAME
            try:
                found[name] = AliasesFile.model_validate_json(path.read_bytes()).root
            except FileNotFoundError:
                found[name] = {}
            except (ValidationError, OSError) as error:
                why = first_problem(error) if isinstance(error, ValidationError) else error.strerror
                log.error("%s cannot be read, so the aliases stay as they are: %s", path, why)
                found[name] = self._repository.aliases.get(name, {})
        return found

    def _judge(self) -> None:
        """Ready once every model was proved; a later load that fails leaves the version that serves, and ready too."""
        reasons = "; ".join(f"{location}: {reason}" for location, reason in self._repository.failed.items())
        served = list(self._repository)
        if not served and reasons and self._mode == "none":
            self._lifecycle.fail(f"no model can be served: {reasons}")
        elif not served:
            self._lifecycle.enter(EMPTY, reasons or f"no model is in service; put one into {self._folder}")
        elif reasons and not self._proved:
            self._lifecycle.enter(FAILED, reasons)
        else:
            self._proved = True
            self._lifecycle.enter(READY)

    def _scan(self) -> dict[Location, Fingerprint]:
        try:
            return {location: state(location) for location in discover(self._folder)}
        except (RepositoryError, OSError):
            return {}


def _is(location: Location, name: str, version: int | None) -> bool:
    return location.name == name and version in (None, location.version)


def _write_aliases(path: Path, aliases: Mapping[Alias, int]) -> None:
    new = path.with_name(f".{path.name}.new")
    new.write_text(json.dumps(aliases))
    os.replace(new, path)
