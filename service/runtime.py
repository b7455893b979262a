"""What runs a batch: the Backend protocol, and the onnxruntime one.

A backend says which device it is on, and it is on that device: asked for CUDA or TensorRT it never falls back.
"""

import errno
import importlib
import logging
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from service.artifact import FEATURES_NAME, LOGITS_NAME, ArtifactError
from service.costs import Arrangement
from service.external_data import refuse_files_outside

log = logging.getLogger(__name__)

Device = Literal["auto", "cpu", "cuda", "tensorrt"]
# A session has its own copy of the weights. Two of a larger file share one copy instead, which takes longer to open.
MAX_TWICE_BYTES = 64 * 2**20
# Two at once: while one computes, the images of the next are stacked and copied.
RUNS_ON_GPU = 2
# What onnxruntime makes of a file, beside its size: convolutions are padded to whole vectors.
SHARED_FILE_ROOM = 1.5
Array = NDArray[Any]


class DeviceError(Exception):
    """The device that was asked for cannot be used. The message is one line that says why and what to do."""


class OutOfDeviceMemory(Exception):
    """A run needs more memory than the device has free; a smaller batch may do."""


class DeviceLost(Exception):
    """Nothing will run on the device any more in this process; a new process may find it in order."""


@dataclass(frozen=True)
class TensorSpec:
    """A graph input or output as onnxruntime describes it; None in the shape stands for a dynamic dimension."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


class Outputs(NamedTuple):
    """What a run gives: logits `[n, classes]`, and the last convolutional map `[n, channels, h, w]` if asked for."""

    logits: NDArray[np.float32]
    features: NDArray[np.float32] | None = None


class Backend(Protocol):
    """A loaded model on a device."""

    device: str
    metadata: Mapping[str, str]
    input: TensorSpec
    output: TensorSpec

    @property
    def lanes(self) -> Mapping[Arrangement, int]:
        """The arrangements it has, and how many threads may call `run` at once in each."""
        ...

    def run(self, images: Array, *, features: bool = False, arrangement: Arrangement = "together") -> Outputs:
        """Logits of a batch `[n, …]` in the input's dtype and layout; `features` only of a model that has them.

        Raises:
            OutOfDeviceMemory, DeviceLost: as they say; whatever else it raises concerns this batch only.
        """
        ...

    def keep(self, arrangements: Collection[Arrangement]) -> None:
        """Free what the other arrangements hold; they are not run any more."""
        ...

    def close(self) -> None:
        """Free the device's memory."""
        ...


OpenBackend = Callable[[Path], Backend]
# Of a provider of onnxruntime, by name.
Options = Mapping[str, str]


class OnnxBackend:
    """onnxruntime sessions on one device, one an arrangement; features stay there unless they are asked for.

    A session may be run by several threads at once, as `spread` is by `runs`. On a CPU that one has one thread of its
    own, so that each run stays on its caller's core; on a GPU both arrangements have the same session.
    """

    def __init__(self, sessions: Mapping[Arrangement, ort.InferenceSession], device: str, runs: int = 1) -> None:
        self._sessions = dict(sessions)
        session = next(iter(sessions.values()))
        self.device = device
        self.lanes: Mapping[Arrangement, int] = {each: runs if each == "spread" else 1 for each in sessions}
        self.metadata: Mapping[str, str] = session.get_modelmeta().custom_metadata_map
        self.input = _spec(_only_input(session))
        self.output = _spec(_logits_output(session))

    def run(self, images: Array, *, features: bool = False, arrangement: Arrangement = "together") -> Outputs:
        """Logits, and features, of a batch; see Backend."""
        if not self._sessions:
            raise RuntimeError("the backend is closed")
        names = [self.output.name, FEATURES_NAME] if features else [self.output.name]
        try:
            outputs = self._sessions[arrangement].run(names, {self.input.name: images})
        except Exception as error:
            raise failure_of(error) from error
        return Outputs(*(np.asarray(each, dtype=np.float32) for each in outputs))

    def keep(self, arrangements: Collection[Arrangement]) -> None:
        """Drop the sessions of the other arrangements."""
        self._sessions = {each: session for each, session in self._sessions.items() if each in arrangements}
        self.lanes = {each: self.lanes[each] for each in self._sessions}

    def close(self) -> None:
        """Drop the sessions; onnxruntime frees their memory with the last reference."""
        self._sessions = {}


def failure_of(error: Exception) -> Exception:
    """What a failed run means, by its words, as onnxruntime has no classes for it; any other failure as it is."""
    message = str(error).lower()
    if isinstance(error, MemoryError) or any(words in message for words in _NO_MEMORY):
        return OutOfDeviceMemory(message.partition("\n")[0])
    if any(words in message for words in _LOST):
        return DeviceLost(message.partition("\n")[0])
    return error


# Of onnxruntime's allocators, of CUDA, cuBLAS and cuDNN.
_NO_MEMORY = ("failed to allocate memory", "out of memory", "bad_alloc", "alloc_failed", "available memory of")
# CUDA's errors that stay: after one of them every call of the process fails (CUDA Runtime API, cudaError_t).
_LOST = (
    "illegal memory access",
    "illegal address",
    "illegal instruction",
    "misaligned address",
    "unspecified launch failure",
    "launch timed out",
    "device-side assert",
    "hardware stack error",
    "uncorrectable ecc error",
    "uncorrectable nvlink error",
    "device is lost",
)


def open_onnx(
    path: Path, device: Device, threads: int, *, spread: bool = False, options: Options | None = None
) -> OnnxBackend:
    """Load an ONNX file onto a device.

    Args:
        path: the model file.
        device: `auto` takes CUDA when it works and the CPU otherwise, and logs which.
        threads: how many cores the model may use on the CPU.
        spread: also offer the arrangement with several runs at once.
        options: of the device's provider, beside those that it always has.

    Raises:
        ArtifactError: the file is no ONNX model that onnxruntime can load, or asks for files outside its folder.
        DeviceError: the device that was asked for is missing or does not work.
    """
    refuse_files_outside(path)
    if device != "auto":
        return _open_on(path, device, threads, spread=spread, options=options)
    if "CUDAExecutionProvider" in ort.get_available_providers():
        try:
            return _open_on(path, "cuda", threads, spread=spread)
        except DeviceError as error:
            log.warning("%s; serving %s on the CPU", error, path)
    return _open_on(path, "cpu", threads, spread=spread)


def _open_on(path: Path, device: str, threads: int, *, spread: bool, options: Options | None = None) -> OnnxBackend:
    provider, _ = PROVIDERS[device]
    if provider not in ort.get_available_providers():
        raise DeviceError(
            f"device {device} was asked for, but this onnxruntime has no {provider}: install resnet-service[gpu]"
        )
    if device == "cpu":
        return OnnxBackend(_cpu_sessions(path, threads, spread=spread), device, threads)
    load_libraries(device)
    session = _session(path, device, threads, options=options)
    arrangements: tuple[Arrangement, ...] = ("together", "spread") if spread else ("together",)
    backend = OnnxBackend(dict.fromkeys(arrangements, session), device, RUNS_ON_GPU)
    _prove(backend, path)
    return backend


def load_libraries(device: str) -> None:
    """Load a GPU's libraries out of the wheels that have them, where no loader finds them by itself.

    TensorRT is told beforehand that float32 stays float32, as on CUDA: it rounds to 10 bits of mantissa unless the
    environment forbids it. The wheel tensorrt-cu13-libs loads its own when it is imported.
    """
    if device == "tensorrt":
        os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
    ort.preload_dlls()
    if device == "tensorrt":
        with suppress(ImportError):
            importlib.import_module("tensorrt_libs")


# use_tf32 rounds float32 convolutions to 10 bits of mantissa: 1e-3 away from what torch was trained to answer.
PROVIDERS: dict[str, tuple[str, Options]] = {
    "cpu": ("CPUExecutionProvider", {}),
    "cuda": ("CUDAExecutionProvider", {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}),
    "tensorrt": ("TensorrtExecutionProvider", {}),
}


def _cpu_sessions(path: Path, threads: int, *, spread: bool) -> dict[Arrangement, ort.InferenceSession]:
    threads_of: dict[Arrangement, int] = {"together": threads}
    if spread and threads > 1:
        threads_of["spread"] = 1
    if len(threads_of) > 1 and path.stat().st_size > MAX_TWICE_BYTES:
        return _sharing_sessions(path, threads_of)
    with ThreadPoolExecutor(len(threads_of), thread_name_prefix="open") as pool:
        opened = pool.map(partial(_session, path, "cpu"), threads_of.values())
        return dict(zip(threads_of, opened, strict=True))


def _sharing_sessions(path: Path, threads_of: Mapping[Arrangement, int]) -> dict[Arrangement, ort.InferenceSession]:
    """CPU sessions with one copy of the float weights: they map the same file, the graph as onnxruntime optimised it.

    Where there is nowhere to write it, the first of them alone, from the file as it is.
    """
    (first, all_threads), *_ = threads_of.items()
    try:
        with TemporaryDirectory(prefix="resnet-serve-") as folder:
            if shutil.disk_usage(folder).free < SHARED_FILE_ROOM * path.stat().st_size:
                raise OSError(errno.ENOSPC, "too little room", folder)
            optimised = Path(folder) / "optimised.onnx"
            _session(path, "cpu", all_threads, optimised)
            return {each: _session(optimised, "cpu", threads) for each, threads in threads_of.items()}
    except (OSError, ArtifactError) as error:  # an ArtifactError too if onnxruntime cannot write
        session = _session(path, "cpu", all_threads)  # raises when the file itself is at fault
        log.warning("no file to share the weights of %s in, so it runs slower under load: %s", path, error)
        return {first: session}


def _session(
    path: Path, device: str, threads: int, save_as: Path | None = None, *, options: Options | None = None
) -> ort.InferenceSession:
    """One session; with `save_as`, what it made of the file is kept there, the weights in a file beside it."""
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    # Spinning between batches would burn the CPU time that decoding needs.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if save_as is not None:
        settings.optimized_model_filepath = str(save_as)
        settings.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights")
    if device != "cpu":
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        # It rounds the biases of an int8 graph to 32 bits, for which CUDA has no kernel.
        settings.add_session_config_entry("optimization.disable_specified_optimizers", "WeightBiasQuantization")
    providers = providers_of(device, options)
    try:
        session = ort.InferenceSession(path, settings, providers=providers, enable_fallback=0)
    except Exception as error:  # onnxruntime raises classes of its own and RuntimeError alike
        if device == "cpu":
            raise ArtifactError(f"onnxruntime cannot load it: {str(error).splitlines()[0]}") from error
        _session(path, "cpu", threads)  # raises when the file and not the device is at fault
        raise DeviceError(f"device {device} cannot run {path}: {_why(error, path)}") from error
    if session.get_providers()[0] != providers[0][0]:
        raise DeviceError(f"device {device} was asked for, but onnxruntime put {path} on {session.get_providers()[0]}")
    return session


# onnxruntime says so of operators that a device has no kernels for, and of all when the device itself is not there.
_ON_THE_CPU = "assigned to the default CPU EP"
_DOCTOR = "(`resnet-serve doctor` with the same --device looks at the driver and the libraries)"


def _why(error: Exception, path: Path) -> str:
    """What keeps a GPU from running a file that a CPU runs, and what to do."""
    reason = str(error).splitlines()[0]
    if isinstance(failure_of(error), OutOfDeviceMemory):
        return f"{reason} (nvidia-smi shows who has the GPU's memory)"
    if _ON_THE_CPU not in reason:
        return f"{reason} {_DOCTOR}"
    settings = ort.SessionOptions()
    settings.log_severity_level = 4  # what there is to say has been said
    cuda = PROVIDERS["cuda"]  # TensorRT needs it, too
    try:
        first = ort.InferenceSession(path, settings, providers=[cuda], enable_fallback=0).get_providers()[0]
    except Exception as another:  # as in _session
        return f"{str(another).splitlines()[0]} {_DOCTOR}"
    if first != cuda[0]:
        return f"the driver, a library or the GPU itself is missing {_DOCTOR}"
    return (
        "some of its operators run on CPUs only, as those of an int8 artifact for CPUs; "
        "convert it with --precision fp16, or serve it with --device cpu"
    )


def providers_of(device: str, options: Options | None = None) -> list[tuple[str, Options]]:
    """What onnxruntime is to run a graph with, the first that can; CUDA has what TensorRT does not take."""
    name, always = PROVIDERS[device]
    return [(name, {**always, **(options or {})}), *([PROVIDERS["cuda"]] if device == "tensorrt" else [])]


def _prove(backend: OnnxBackend, path: Path) -> None:
    # The CUDA provider loads without cuDNN and fails at its first convolution, so one real batch decides.
    shape = [1 if size is None else size for size in backend.input.shape]
    try:
        backend.run(np.zeros(shape, dtype=np.uint8 if backend.input.dtype == "tensor(uint8)" else np.float32))
    except Exception as error:  # as in _session
        raise DeviceError(f"device {backend.device} cannot run {path}: {_why(error, path)}") from error


def _only_input(session: ort.InferenceSession) -> Any:
    inputs = session.get_inputs()
    if len(inputs) != 1:
        raise ArtifactError(f"it has {len(inputs)} inputs; a classifier has one")
    return inputs[0]


def _logits_output(session: ort.InferenceSession) -> Any:
    outputs = session.get_outputs()
    for output in outputs:
        if output.name == LOGITS_NAME or len(outputs) == 1:
            return output
    names = ", ".join(output.name for output in outputs)
    raise ArtifactError(f"none of its outputs ({names}) is called {LOGITS_NAME}")


def _spec(node: Any) -> TensorSpec:
    return TensorSpec(node.name, node.type, tuple(size if isinstance(size, int) else None for size in node.shape))
