"""Sessions on the CPU: how they are opened, in each arrangement of the cores."""

import logging
import os
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from service.artifact import ArtifactError
from service.runtime import MAX_TWICE_BYTES, PROVIDERS, DeviceError, open_onnx

CHANNELS, CLASSES = 1024, 2048


@pytest.fixture(scope="module")
def large_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network with large weights."""
    draw = np.random.default_rng(0)
    weights: dict[str, np.ndarray] = {
        "w1": draw.normal(size=(CHANNELS, 3, 1, 1)).astype(np.float32),
        "w2": draw.normal(size=(CLASSES, CHANNELS, 3, 3)).astype(np.float32) / CHANNELS,
    }
    nodes = [
        helper.make_node("Cast", ["input"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["nchw", "w1"], ["wide"]),
        helper.make_node("Conv", ["wide", "w2"], ["deep"]),
        helper.make_node("GlobalAveragePool", ["deep"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("input", TensorProto.UINT8, ["n", 4, 4, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", CLASSES])],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    path = tmp_path_factory.mktemp("large") / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    assert path.stat().st_size > MAX_TWICE_BYTES
    return path


def test_the_sessions_of_a_large_file_share_their_weights_and_leave_no_file(
    large_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    backend = open_onnx(large_file, "cpu", 2, spread=True)
    assert backend.lanes == {"together": 1, "spread": 2}
    assert not list(tmp_path.iterdir())
    image = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3)
    together, spread = (backend.run(image, arrangement=each).logits for each in backend.lanes)
    np.testing.assert_allclose(together, spread, rtol=1e-4, atol=1e-4)
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line]
    times = Counter(offset for _, _, offset, *_ in maps)
    assert set(times.values()) == {2}, "each session maps each tensor of the file that is gone"


def test_without_room_for_a_shared_file_the_model_runs_in_one_arrangement(
    large_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with caplog.at_level(logging.WARNING):
        backend = open_onnx(large_file, "cpu", 2, spread=True)
    assert backend.lanes == {"together": 1}
    assert "runs slower under load" in caplog.text
    assert backend.run(np.zeros((2, 4, 4, 3), np.uint8)).logits.shape == (2, CLASSES)


def test_a_device_that_has_not_all_operators_is_refused_with_what_to_do_unless_the_file_is_at_fault(
    large_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The other provider of the CPU's wheel, in the place of CUDA: it takes none of these operators.
    if "AzureExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime is not the CPU's")
    monkeypatch.setitem(PROVIDERS, "cuda", ("AzureExecutionProvider", {}))
    weights = tmp_path / "weights"
    model = onnx.load(large_file)
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, location=weights.name)
    os.truncate(weights, weights.stat().st_size // 2)
    with pytest.raises(ArtifactError, match="onnxruntime cannot load it"):
        open_onnx(tmp_path / "model.onnx", "cuda", 1)
    with pytest.raises(DeviceError, match=r"device cuda .* run on CPUs only.*--precision fp16.*--device cpu"):
        open_onnx(large_file, "cuda", 1)
