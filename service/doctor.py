"""`resnet-serve doctor`: what on this machine stands in the way of serving, and what to do about it."""

import ctypes
import os
import re
import resource
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnxruntime as ort

from service.cpus import available_cpus
from service.folder import RepositoryError, discover
from service.resample import KERNEL
from service.runtime import load_libraries
from service.server import ListenError, listen
from service.settings import Settings

# Connections, and some for models, logs and libraries.
ENOUGH_DESCRIPTORS = 4096
ENOUGH_MEMORY = 512 * 2**20
# What cgroup v1 has for no limit is a little below 2**63.
UNLIMITED = 2**60
# The wheel that has a library of CUDA, by the beginning of its name.
WHEELS = {
    "libcudnn": "nvidia-cudnn",
    "libcublas": "nvidia-cublas",
    "libcudart": "nvidia-cuda-runtime",
    "libcufft": "nvidia-cufft",
    "libcurand": "nvidia-curand",
    "libnvrtc": "nvidia-cuda-nvrtc",
    "libnvJitLink": "nvidia-nvjitlink",
    "libnvinfer": "tensorrt-cu13<11",
    "libnvonnxparser": "tensorrt-cu13<11",
}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `fix` is empty where all is well; `fatal` where the service cannot start so."""

    what: str
    found: str
    fix: str = ""
    fatal: bool = False

    def __str__(self) -> str:
        verdict = "FAIL" if self.fatal else "warn" if self.fix else "ok  "
        return f"{verdict}  {self.what}: {self.found}" + (f"; {self.fix}" if self.fix else "")


def examine(settings: Settings) -> Iterator[Finding]:
    """Look at the machine with the eyes of a server that has these settings."""
    yield Finding("Python", f"{sys.version.split()[0]}, onnxruntime {ort.__version__}")
    yield from _device(settings)
    yield _resize()
    yield _threads(settings)
    yield from _memory()
    yield _descriptors()
    yield _models(settings)
    for port in (settings.port, settings.admin_port, settings.grpc_port):
        if port:
            yield _port(settings.host, port)


def _device(settings: Settings) -> Iterator[Finding]:
    asked = settings.device in ("cuda", "tensorrt")
    providers = ort.get_available_providers()
    if "CUDAExecutionProvider" not in providers:
        fix = "install resnet-service[gpu] instead of [cpu], or set SERVICE_DEVICE=cpu" if asked else ""
        yield Finding("device", "this onnxruntime has the CPU only", fix, fatal=asked)
        return
    yield _driver(asked=asked)
    load_libraries(settings.device)
    names = ["CUDA"] + (["TensorRT"] if settings.device == "tensorrt" else [])
    for name in names:
        yield _provider(name, fatal=asked)


def _driver(*, asked: bool) -> Finding:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        version = ctypes.c_int()
        driver.cuDriverGetVersion(ctypes.byref(version))
    except OSError:
        return Finding(
            "NVIDIA driver",
            "libcuda.so.1 is not there",
            "install the driver, or start the container with the NVIDIA runtime (--gpus all)",
            fatal=asked,
        )
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return Finding("NVIDIA driver", "it sees no GPU", "look at nvidia-smi and at CUDA_VISIBLE_DEVICES", fatal=asked)
    return Finding("NVIDIA driver", f"CUDA {version.value // 1000}.{version.value % 1000 // 10}, {count.value} GPU(s)")


def _provider(name: str, *, fatal: bool) -> Finding:
    library = Path(ort.__file__).parent / "capi" / f"libonnxruntime_providers_{name.lower()}.so"
    # The shared half of all providers has to be there first.
    ctypes.CDLL(str(library.with_name("libonnxruntime_providers_shared.so")), mode=ctypes.RTLD_GLOBAL)
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        return _missing(name, str(error), fatal=fatal)
    return Finding(f"{name} provider", "all of its libraries are there")


def _missing(name: str, message: str, *, fatal: bool) -> Finding:
    """What the loader's complaint means, and which wheel would still it."""
    found = re.match(r"(lib[\w.+-]+\.so[\d.]*): cannot open", message)
    if found is None:
        return Finding(f"{name} provider", message, "install resnet-service[gpu] anew", fatal=fatal)
    wheels = [wheel for start, wheel in WHEELS.items() if found[1].startswith(start)] or ["onnxruntime-gpu[cuda,cudnn]"]
    return Finding(f"{name} provider", f"{found[1]} is missing", f"install the wheel {wheels[0]}", fatal=fatal)


def _resize() -> Finding:
    if KERNEL is None:
        fix = "install a C compiler and resnet-service anew: images of 500×375 are then ready in half the time"
        return Finding("resize kernel", "Pillow resizes instead", fix)
    return Finding("resize kernel", "compiled, and equal to Pillow's pixels")


def _threads(settings: Settings) -> Finding:
    granted = available_cpus()
    if settings.threads > granted:
        fix = f"set SERVICE_THREADS to {granted}, or 0 to follow what is granted"
        return Finding("threads", f"{settings.threads} on {granted} granted CPUs", fix)
    return Finding("threads", f"{settings.threads or granted} on {granted} granted CPUs of {os.cpu_count()}")


def _memory() -> Iterator[Finding]:
    for path in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        try:
            text = path.read_text().strip()
        except OSError:
            continue
        limited = text.isdigit() and int(text) < UNLIMITED
        if limited and int(text) < ENOUGH_MEMORY:
            yield Finding("memory", f"limited to {int(text) // 2**20} MiB", "grant 512 MiB, and more for large models")
        else:
            yield Finding("memory", "no limit" if not limited else f"limited to {int(text) // 2**20} MiB")
        return


def _descriptors() -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < ENOUGH_DESCRIPTORS:
        fix = f"raise it to {ENOUGH_DESCRIPTORS} or more (ulimit -n, LimitNOFILE, ulimits of compose)"
        return Finding("file descriptors", f"{soft}, one for each connection", fix)
    return Finding("file descriptors", str(soft))


def _models(settings: Settings) -> Finding:
    try:
        found = discover(settings.models)
    except RepositoryError as error:
        return Finding("models", *_halves(str(error)), fatal=settings.model_control == "none")
    unreadable = [str(each) for each in found if not os.access(each.path, os.R_OK)]
    if unreadable:
        fix = f"let user {os.getuid()} read the files"
        return Finding("models", f"{', '.join(unreadable)} cannot be read", fix, fatal=True)
    return Finding("models", f"{len(found)} in {settings.models}; `resnet-serve check` proves them")


def _halves(complaint: str) -> tuple[str, str]:
    found, _, fix = complaint.partition(": ")
    return found, fix


def _port(host: str, port: int) -> Finding:
    try:
        listen(host, port).close()
    except ListenError as error:
        return Finding(f"port {port}", str(error), "choose another, or end what has it", fatal=True)
    return Finding(f"port {port}", f"free on {host}")
