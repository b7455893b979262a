"""What TensorRT is asked to build, and where it may keep it; that it does is for tests/gpu."""

import shutil
from pathlib import Path

import onnx
import pytest

from service.runtime import DeviceError
from service.tensorrt import engine_options

PROFILE = {
    f"trt_profile_{bound}_shapes": f"images:{size}x32x32x3" for bound, size in (("min", 1), ("opt", 8), ("max", 8))
}


def artifact(models: Path) -> Path:
    return models / "digits" / "1" / "model.onnx"


@pytest.mark.parametrize(
    ("precision", "allowed"),
    [("fp32", {}), ("fp16", {"trt_fp16_enable": "True"}), ("int8", {"trt_int8_enable": "True"})],
)
def test_one_engine_is_for_all_batches_and_has_the_precision_of_the_card(
    precision: str, allowed: dict[str, str], digits_by_precision: dict[str, Path]
) -> None:
    assert engine_options(artifact(digits_by_precision[precision]), 8, None) == PROFILE | allowed


def test_a_model_without_a_card_is_in_float32(digits_model: Path, tmp_path: Path) -> None:
    model = onnx.load(digits_model)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "model.onnx")
    assert engine_options(tmp_path / "model.onnx", 8, None) == {}


def test_weights_in_another_file_count_as_well(digits_model: Path, tmp_path: Path) -> None:
    model, folders = onnx.load(digits_model), set()
    for change in (0, 1):
        model.graph.initializer[0].raw_data = bytes(each ^ change for each in model.graph.initializer[0].raw_data)
        onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, location="weights", size_threshold=0)
        model = onnx.load(tmp_path / "model.onnx")
        folders.add(engine_options(tmp_path / "model.onnx", 8, tmp_path / "cache")["trt_engine_cache_path"])
        content = (tmp_path / "model.onnx").read_bytes()
        (tmp_path / "weights").unlink()
    assert b"weights" in content
    assert len(folders) == 2


def test_engines_are_kept_and_never_shared_by_files_with_other_weights(digits_model: Path, tmp_path: Path) -> None:
    copy, other, cache = tmp_path / "copy.onnx", tmp_path / "other.onnx", tmp_path / "made" / "cache"
    shutil.copy(digits_model, copy)
    content = bytearray(digits_model.read_bytes())
    content[len(content) // 2] ^= 1
    other.write_bytes(content)
    options = [engine_options(each, 8, cache) for each in (digits_model, copy, other)]
    folders = [Path(each["trt_engine_cache_path"]) for each in options]
    assert folders[0] == folders[1] != folders[2]
    assert all(each.is_dir() and each.parent == cache for each in folders)
    assert {each["trt_timing_cache_path"] for each in options} == {str(cache)}
    assert {each["trt_engine_cache_enable"] for each in options} == {"True"}


def test_a_folder_that_cannot_be_written_is_named_with_its_setting(digits_model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DeviceError, match=r"SERVICE_TENSORRT_CACHE=.*Not a directory"):
        engine_options(digits_model, 8, tmp_path / "file" / "cache")
