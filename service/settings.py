"""Every setting, its default and its meaning. Built once, in cli.py, and passed down."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.access import given_keys
from service.artifact import first_problem
from service.runtime import Device
from service.splits import parse_splits

PREFIX = "SERVICE_"

# A month; timers cannot be set for any time.
MOST_MS = 30 * 86_400_000

Positive = Annotated[int, Field(gt=0)]
Milliseconds = Annotated[int, Field(gt=0, le=MOST_MS)]
NotNegative = Annotated[int, Field(ge=0)]


class SettingsError(Exception):
    """A setting is unknown or has a bad value. The message is one line that names it."""


def _is_canary(text: str) -> str:
    parse_splits(text, whole=False)
    return text


def _is_shadow(text: str) -> str:
    parse_splits(text, whole=True)
    return text


def _are_keys(keys: SecretStr) -> SecretStr:
    text = keys.get_secret_value()
    if text and not given_keys(text):
        raise ValueError("it is set, and there is no key in it")
    return keys


def _is_url(text: str) -> str:
    url = text.strip()
    if url and not re.fullmatch(r"https?://[^/\s]+(/\S*)?", url, re.IGNORECASE):
        raise ValueError("it is no URL, as http://HOST:4318/v1/traces is")
    return url


class Settings(BaseSettings):
    """Read from `SERVICE_*` environment variables; a flag of `resnet-serve` wins over its variable."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", env_ignore_empty=True)

    models: Path = Field(Path("models"), description="folder of models, <name>/<version>/model.onnx")
    default_model: str = Field("", description="model for requests that name none, where several are served")
    model_signers: Path | None = Field(
        None, description="PEM file of public Ed25519 keys; only models that one of them has signed are served"
    )
    model_control: Literal["none", "poll", "explicit"] = Field(
        "none",
        description="none: the models at the start; poll: what changes in the folder; explicit: by request under /v2",
    )
    model_poll_ms: Milliseconds = Field(1_000, description="with poll, time between two looks at the folder, in ms")
    canary: Annotated[str, AfterValidator(_is_canary)] = Field(
        "", description="share of requests without a version that another one gets, MODEL:VERSION:SHARE%, by commas"
    )
    shadow: Annotated[str, AfterValidator(_is_shadow)] = Field(
        "", description="version that sees what another answers, MODEL:VERSION[:SHARE%], by commas; only compared"
    )
    host: str = Field("127.0.0.1", description="address to listen on")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(8000, description="port to listen on; 0 takes a free one")
    admin_port: Annotated[int, Field(ge=0, le=65535)] = Field(
        0, description="port that alone has /metrics and model control; 0 leaves them on the other"
    )
    grpc_port: Annotated[int, Field(ge=0, le=65535)] = Field(
        0, description="port of the Open Inference Protocol over gRPC; 0 opens none"
    )
    device: Device = Field("auto", description="auto, cpu, cuda or tensorrt; only auto ever chooses the CPU by itself")
    tensorrt_cache: Path | None = Field(
        None, description="folder where TensorRT keeps what it has built, minutes for each model, for the next start"
    )
    threads: NotNegative = Field(
        0, description="CPU threads of the model and of decoding each; 0 takes the CPUs granted"
    )
    http_workers: Literal["auto"] | NotNegative = Field(
        "auto",
        description="processes that answer beside this one for networks which take less time than HTTP; auto: one for "
        "each of several threads, 4 at most; a number: they decode for all others, too, as a GPU needs; 0: none",
    )
    max_batch_size: Positive = Field(32, description="most images in one run of the model")
    max_queue: Positive = Field(256, description="most images admitted and waiting for one model; more get 429")
    request_timeout_ms: Milliseconds = Field(30_000, description="deadline of a request that names none, in ms")
    max_image_bytes: Positive = Field(10 * 2**20, description="largest encoded image, in bytes")
    max_image_pixels: Positive = Field(25_000_000, description="largest image, in pixels, read from its header")
    max_request_images: Positive = Field(64, description="most images in one /classify/batch request")
    max_request_bytes: Positive = Field(32 * 2**20, description="largest body of /classify/batch, in bytes")
    cache_bytes: NotNegative = Field(0, description="results kept by the content of the image, in bytes; 0 keeps none")
    max_intake_bytes: Positive = Field(2**28, description="most bytes of all bodies in memory at once; more get 429")
    device_timeout_ms: Milliseconds = Field(
        10_000,
        description="longest run of one batch, in ms, before the device counts as hung and the process ends; "
        "never less than 20 times what the slowest batch took at the start",
    )
    drain_delay_ms: Annotated[int, Field(ge=0, le=MOST_MS)] = Field(
        1_000,
        description="after SIGTERM, time to keep serving while not ready, so that load balancers notice, in ms",
    )
    drain_timeout_ms: Milliseconds = Field(
        30_000, description="longest wait for requests in flight when stopping, in ms"
    )
    example_image: str = Field("", description="image file for a curl line to try, printed when ready")
    api_keys: Annotated[SecretStr, AfterValidator(_are_keys)] = Field(
        SecretStr(""), description="keys that callers must have one of, by commas; none: open"
    )
    api_keys_file: Path | None = Field(
        None, description="file of keys with scopes, a line each (`resnet-serve key` makes one); read when it changes"
    )
    rate_limit: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        0.0, description="requests a second for each key, more get 429; 0 for no limit"
    )
    tls_cert: Path | None = Field(None, description="PEM file of the certificate chain; HTTPS, read when it changes")
    tls_key: Path | None = Field(None, description="PEM file of the certificate's private key")
    otlp_endpoint: Annotated[str, AfterValidator(_is_url)] = Field(
        "", description="URL of an OpenTelemetry collector for traces, http://HOST:4318/v1/traces; none: no traces"
    )
    trace_sample: Annotated[float, Field(ge=0, le=1)] = Field(
        1.0, description="share of the requests without a trace of their caller's that begin one"
    )
    log_format: Literal["json", "text"] = Field("json", description="json or text")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="debug, info, warning or error")

    @model_validator(mode="after")
    def _limits_agree(self) -> Self:
        if self.max_request_images > self.max_queue:
            raise ValueError(
                f"max_request_images ({self.max_request_images}) is larger than max_queue ({self.max_queue}): "
                "such a request could never be admitted"
            )
        if self.max_request_bytes > self.max_intake_bytes:
            raise ValueError(
                f"max_request_bytes ({self.max_request_bytes}) is larger than "
                f"max_intake_bytes ({self.max_intake_bytes}): such a request could never be read"
            )
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key are set together or not at all")
        if self.admin_port and self.admin_port == self.port:
            raise ValueError("admin_port and port are the same")
        if self.rate_limit and not self.api_keys.get_secret_value() and self.api_keys_file is None:
            raise ValueError("rate_limit is for each key, and there are no keys: set api_keys or api_keys_file")
        return self

    @property
    def url(self) -> str:
        """Where a browser on this machine finds the service."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, self.host)  # noqa: S104  compared, not bound
        return f"{'https' if self.tls_cert else 'http'}://{host}:{self.port}"


def read_settings(flags: Mapping[str, Any]) -> Settings:
    """Settings from flags (those that were given) over the environment over the defaults.

    Raises:
        SettingsError: an unknown `SERVICE_*` variable, or a value that does not fit.
    """
    known = {(PREFIX + name).upper() for name in Settings.model_fields}
    for variable in sorted(os.environ):
        if variable.upper().startswith(PREFIX) and variable.upper() not in known:
            raise SettingsError(f"{variable} is not a setting; `resnet-serve --help` lists them all")
    try:
        return Settings(**flags)
    except ValidationError as error:
        raise SettingsError(_complaint(error)) from error


def _complaint(error: ValidationError) -> str:
    location = error.errors()[0]["loc"]
    value = error.errors()[0]["input"]
    problem = first_problem(error)
    if not location:
        return problem
    name = (PREFIX + str(location[0])).upper()
    shown = name if location[0] == "api_keys" else f"{name}={value}"
    return f"{shown}: {problem.partition(': ')[2]}"
