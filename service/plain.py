"""A plain ONNX classifier, without a card: served with preprocessing and labels from `config.json`.

Such graphs mostly take normalised float32 in NCHW; the normalisation that an artifact has inside is done here.
"""

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.artifact import ArtifactError, InputSpec, ModelCard, Preprocessing, first_problem
from service.costs import Arrangement
from service.runtime import Array, Backend, Outputs, TensorSpec

CONFIG_NAME = "config.json"


class PlainConfig(BaseModel):
    """`models/<name>/config.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    labels: tuple[str, ...] = Field(min_length=1)
    preprocessing: Preprocessing
    architecture: str = "unknown"


def card_from_config(config: Path, name: str) -> ModelCard:
    """The card that `config.json` amounts to: no source, no parity, no golden images.

    Raises:
        ArtifactError: the file is missing or not valid.
    """
    try:
        plain = PlainConfig.model_validate_json(config.read_bytes())
    except FileNotFoundError as error:
        raise ArtifactError(
            f"it has no model card and there is no {config} with its labels and preprocessing"
        ) from error
    except ValidationError as error:
        raise ArtifactError(f"{config} is not valid: {first_problem(error)}") from error
    crop = plain.preprocessing.crop
    return ModelCard(
        name=name,
        architecture=plain.architecture,
        input=InputSpec(height=crop, width=crop),
        preprocessing=plain.preprocessing,
        labels=plain.labels,
        precision="unknown",
    )


def refuse_normalisation(card: ModelCard) -> ModelCard:
    """The card of a graph that takes uint8; ArtifactError if its config asks for a mean and std as well."""
    if set(card.preprocessing.mean) != {0} or set(card.preprocessing.std) != {1}:
        raise ArtifactError("its input is uint8, so it normalises inside: set mean to 0 and std to 1 in config.json")
    return card


class NormalisingBackend:
    """Makes a graph that takes normalised float32 look like one that takes uint8 `[n, height, width, 3]`."""

    def __init__(self, inner: Backend, recipe: Preprocessing) -> None:
        self._inner = inner
        self._scale = 1 / (255 * np.asarray(recipe.std, dtype=np.float32))
        self._shift = -np.asarray(recipe.mean, dtype=np.float32) / np.asarray(recipe.std, dtype=np.float32)
        self._channels_first = _is_channels_first(inner.input)
        shape = inner.input.shape
        self.device: str = inner.device
        self.metadata: Mapping[str, str] = inner.metadata
        self.output = inner.output
        self.input = TensorSpec(
            inner.input.name,
            "tensor(uint8)",
            (shape[0], *shape[2:], 3) if self._channels_first else shape,
        )

    @property
    def lanes(self) -> Mapping[Arrangement, int]:
        """Those of the graph inside."""
        return self._inner.lanes

    def run(self, images: Array, *, features: bool = False, arrangement: Arrangement = "together") -> Outputs:
        """Logits, and features, of uint8 `[n, height, width, 3]`."""
        normalised = images.astype(np.float32) * self._scale + self._shift  # (n, H, W, 3) float32
        if self._channels_first:
            normalised = np.ascontiguousarray(normalised.transpose(0, 3, 1, 2))  # (n, 3, H, W) float32
        return self._inner.run(normalised, features=features, arrangement=arrangement)

    def keep(self, arrangements: Collection[Arrangement]) -> None:
        """Free the others in the graph inside."""
        self._inner.keep(arrangements)

    def close(self) -> None:
        """Close the graph inside."""
        self._inner.close()


def _is_channels_first(spec: TensorSpec) -> bool:
    if spec.dtype == "tensor(float)" and len(spec.shape) == 4:
        if spec.shape[1] == 3:
            return True
        if spec.shape[3] == 3:
            return False
    raise ArtifactError(f"its input {spec.name} is {spec.dtype} {spec.shape}, not float32 images with 3 channels")
