"""`resnet-serve check`: every model loaded and its golden images replayed, on the device it would be served from."""

from collections.abc import Iterator
from dataclasses import dataclass

from service.folder import Location, discover
from service.loading import LoadedModel, describe_failure, load
from service.opening import opener_for
from service.settings import Settings


@dataclass(frozen=True)
class Verdict:
    """One model's outcome: loaded and proved, or the reason why not."""

    location: Location
    model: LoadedModel | None
    reason: str

    def __str__(self) -> str:
        if self.model is None:
            return f"FAIL  {self.location}: {self.reason}"
        difference = self.model.golden_max_abs_diff
        proof = "no golden images" if difference is None else f"golden images within {difference:.2g}"
        return f"ok    {self.location} on {self.model.backend.device}: {proof}, loaded in {self.model.seconds:.2f} s"


def check(settings: Settings) -> Iterator[Verdict]:
    """Load and replay the models one by one.

    Raises:
        RepositoryError: there is none.
        SignersError: the trusted signers cannot be read.
    """
    opener = opener_for(settings)
    for location in discover(settings.models):
        try:
            model = load(location, opener, settings.max_batch_size, lambda _: None)
        except Exception as error:  # a table of all models needs each one's reason, whatever it is
            yield Verdict(location, None, describe_failure(error))
        else:
            model.backend.close()
            yield Verdict(location, model, "")
