"""FastAPI and Pillow, one image a call: what everybody writes first.

A worker for each core. A plain `def`, as FastAPI advises for blocking work, so that the event loop goes on reading.
"""

import os
import sys

from fastapi import FastAPI, UploadFile

from benchmarks.peers.common import HOST, Prediction, decode_with_pillow, fit, open_model, port, workers

if __name__ == "__main__":
    command = ["uvicorn", "serve:app", "--app-dir", os.path.dirname(__file__), "--host", HOST, "--port", str(port())]
    options = ["--workers", str(workers()), "--no-access-log", "--log-level", "warning"]
    os.execv(sys.executable, [sys.executable, "-m", *command, *options])

app = FastAPI()
model = open_model()


@app.post("/classify")
def classify(file: UploadFile) -> list[Prediction]:
    """The five most probable labels."""
    pixels = fit(decode_with_pillow(file.file.read(), model.recipe), model.recipe)
    return model.top5(model.logits([pixels])[0])
