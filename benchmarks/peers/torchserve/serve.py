"""TorchServe: its Java front queues and batches, Python workers decode and classify.

A worker for each core. A batch waits 1 ms at most: with 0 TorchServe stops at the first request it finds. The archive
has only the handler: the model's file stays where it is. TorchServe would log several lines a request: it is told to
log warnings only.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.peers.common import HOST, MAX_BATCH_SIZE, TIMEOUT_SECONDS, free_port, port, workers

FOLDER = Path(__file__).parent
BATCH_DELAY_MS = 1
QUEUE_SIZE = 10_000


def archive(store: Path) -> None:
    """Pack the handler into the model store."""
    packer = Path(sys.executable).with_name("torch-model-archiver")
    options = ["--model-name", "classifier", "--version", "1.0", "--handler", FOLDER / "handler.py"]
    subprocess.run([packer, *options, "--export-path", store], check=True)  # noqa: S603


def properties() -> str:
    """TorchServe's configuration."""
    address = f"http://{HOST}:{port()}"
    model = {
        "defaultVersion": True,
        "marName": "classifier.mar",
        "minWorkers": workers(),
        "maxWorkers": workers(),
        "batchSize": MAX_BATCH_SIZE,
        "maxBatchDelay": BATCH_DELAY_MS,
        "responseTimeout": TIMEOUT_SECONDS,
    }
    settings = {
        "inference_address": address,
        "management_address": address,
        "metrics_address": f"http://{HOST}:{free_port()}",
        "grpc_inference_port": free_port(),
        "grpc_management_port": free_port(),
        "job_queue_size": QUEUE_SIZE,
        "disable_system_metrics": "true",
        "load_models": "all",
        "models": json.dumps({"classifier": {"1.0": model}}),
    }
    return "".join(f"{name}={value}\n" for name, value in settings.items())


if __name__ == "__main__":
    folder = Path(tempfile.mkdtemp())
    archive(folder)
    configuration = folder / "config.properties"
    configuration.write_text(properties())
    os.environ["TEMP"] = str(folder)
    start = ["--start", "--foreground", "--ncs", "--disable-token-auth", "--model-store", str(folder)]
    files = ["--ts-config", str(configuration), "--log-config", str(FOLDER / "log4j2.xml")]
    os.execv(sys.executable, [sys.executable, "-m", "ts.model_server", *start, *files])
