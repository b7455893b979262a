"""From the folder to a proved model: real ONNX files, and each thing that can be wrong with one."""

import base64
import json
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from service.artifact import CARD_PROPERTY, ArtifactError, ModelCard
from service.costs import Arrangement, Cost, Costs, TooLarge
from service.folder import Location, RepositoryError, discover
from service.golden import GoldenMismatch, golden_pixels
from service.loading import LoadedModel, Timed, load
from service.opening import Opener
from service.runtime import Array, Backend, DeviceError, OutOfDeviceMemory, Outputs, open_onnx
from service.seal import seal
from tests.backends import ColourBackend

opener = Opener(partial(open_onnx, device="cpu", threads=1))


def load_file(path: Path, max_batch: int = 8) -> tuple[LoadedModel, list[str]]:
    phases: list[str] = []
    version = int(path.parent.name)
    return load(Location(path.parent.parent.name, version, path), opener, max_batch, phases.append), phases


def changed(
    model: Path, tmp_path: Path, change: Callable[[onnx.ModelProto], None], *, sealed_anew: bool = True
) -> Path:
    """A copy of an artifact with a change that its seal, made anew, vouches for; so the other checks must find it."""
    proto = onnx.load(model)
    change(proto)
    path = tmp_path / "digits" / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    if sealed_anew:
        card = ModelCard.model_validate_json(proto.metadata_props.pop().value)
        resealed = seal(card, proto.SerializeToString())
        proto.metadata_props.add(key=CARD_PROPERTY, value=resealed.model_dump_json())
    onnx.save(proto, path)
    return path


def change_card(edit: Callable[[dict[str, Any]], object]) -> Callable[[onnx.ModelProto], None]:
    def change(proto: onnx.ModelProto) -> None:
        (entry,) = [each for each in proto.metadata_props if each.key == CARD_PROPERTY]
        card = json.loads(entry.value)
        edit(card)
        entry.value = json.dumps(card)

    return change


def test_discover_finds_versions_in_order_and_ignores_what_does_not_fit(tmp_path: Path) -> None:
    for name in ("b/2", "b/10", "a/1", "a/01", "a/x", "a/0", ".converting/1", "b/.converting-x"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "model.onnx").touch()
    (tmp_path / "a" / "2").mkdir()
    assert [str(each) for each in discover(tmp_path)] == ["a version 1", "b version 2", "b version 10"]


def test_discover_says_what_to_do_when_there_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="resnet-export convert"):
        discover(tmp_path / "absent")


def test_the_real_digits_load_with_every_phase(digits_model: Path) -> None:
    loaded, phases = load_file(digits_model)
    assert phases == ["loading", "golden", "warmup 1/2", "warmup 2/2"]
    assert loaded.backend.device == "cpu"
    assert loaded.golden_max_abs_diff is not None
    assert loaded.golden_max_abs_diff < 1e-3
    assert loaded.card.labels[7] == "seven"


def test_warm_up_times_the_batch_sizes_and_keeps_the_arrangements_that_pay(digits_model: Path) -> None:
    open_both = Opener(partial(open_onnx, device="cpu", threads=2, spread=True))
    loaded = load(Location("digits", 1, digits_model), open_both, 8, lambda _: None)
    costs = loaded.costs
    assert [cost.size for cost in costs.table] == [1, 2, 4, 8][: len(costs.table)]
    assert costs.sizes[0] == 1
    assert all(cost.seconds > 0 and cost.images_per_second > 0 for cost in costs.table)
    assert set(loaded.backend.lanes) == costs.arrangements
    assert costs.lanes == loaded.backend.lanes[costs.crowd]


def test_changed_weights_fail_the_golden_logits(digits_model: Path, tmp_path: Path) -> None:
    def change(proto: onnx.ModelProto) -> None:
        weights = next(each for each in proto.graph.initializer if len(each.dims) == 4)
        weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights) * 1.01, weights.name))

    with pytest.raises(GoldenMismatch, match="logits differ"):
        load_file(changed(digits_model, tmp_path, change))


def test_swapped_channels_in_the_graph_fail_the_golden_logits(digits_model: Path, tmp_path: Path) -> None:
    def change(proto: onnx.ModelProto) -> None:
        weights = next(each for each in proto.graph.initializer if list(each.dims[1:]) == [3, 3, 3])
        weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights)[:, ::-1].copy(), weights.name))

    with pytest.raises(GoldenMismatch, match="logits differ"):
        load_file(changed(digits_model, tmp_path, change))


@pytest.mark.parametrize("field", ["interpolation", "resize"])
def test_other_preprocessing_fails_the_golden_pixels(field: str, digits_model: Path, tmp_path: Path) -> None:
    value: object = {"interpolation": "nearest", "resize": 33}[field]
    change = change_card(lambda card: card["preprocessing"].update({field: value}))
    with pytest.raises(GoldenMismatch, match="pixels differ"):
        load_file(changed(digits_model, tmp_path, change))


def test_a_golden_image_that_is_no_image_is_named(digits_model: Path, tmp_path: Path) -> None:
    garbage = base64.b64encode(b"garbage").decode()
    change = change_card(lambda card: card["golden"][2].update(image_base64=garbage))
    with pytest.raises(GoldenMismatch, match="golden image 2"):
        load_file(changed(digits_model, tmp_path, change))


class Watched:
    """A real backend that is as slow as it is told, remembers what it ran, and can answer wrongly or have no memory."""

    def __init__(self, inner: Backend) -> None:
        self.device, self.metadata, self.input, self.output = inner.device, inner.metadata, inner.input, inner.output
        self.lanes = inner.lanes
        self.seconds: Mapping[Arrangement, float] = {"together": 0.0, "spread": 0.0}
        self.wrong: Callable[[Array, Arrangement], bool] = lambda *_: False
        self.room = 10**6
        self.images: set[bytes] = set()
        self._inner = inner
        self._lock = threading.Lock()

    def run(self, images: Array, *, features: bool = False, arrangement: Arrangement = "together") -> Outputs:
        with self._lock:
            if self.room < len(images):
                raise OutOfDeviceMemory("no memory")
            self.room -= len(images)
        time.sleep(self.seconds[arrangement] * len(images))
        outputs = self._inner.run(images, features=features, arrangement=arrangement)
        with self._lock:
            self.room += len(images)
            self.images |= {each.tobytes() for each in images}
        factor = np.float32(1.1 if self.wrong(images, arrangement) else 1)
        return Outputs(outputs.logits * factor, outputs.features)

    def keep(self, arrangements: Collection[Arrangement]) -> None:
        self._inner.keep(arrangements)

    def close(self) -> None:
        self._inner.close()


def watched(path: Path, *timed: Timed, **told: Any) -> tuple[Watched, Callable[[], LoadedModel]]:
    """A backend for an artifact, told so, and what loads it beside what was timed before."""
    backend = Watched(open_onnx(path, "cpu", threads=2, spread=True))
    for name, value in told.items():
        setattr(backend, name, value)
    opener = Opener(lambda _: backend)
    return backend, lambda: load(Location("digits", 1, path), opener, 4, lambda _: None, timed=timed)


# Of no machine: what is measured is never so.
KNOWN = Costs("together", 7.0, "spread", 2, (Cost(1, 8.0, 0.25, True), Cost(4, 9.0, 0.5, True)))


def card_in(path: Path) -> ModelCard:
    return load_file(path)[0].card


def test_a_version_of_the_same_layers_is_proved_and_not_timed_again(digits_model: Path) -> None:
    backend, load_it = watched(digits_model, Timed(card_in(digits_model), "cpu", KNOWN))
    assert load_it().costs == KNOWN
    assert len(backend.images) == 8, "the golden images"
    _, load_it = watched(
        digits_model, Timed(card_in(digits_model), "cpu", KNOWN), wrong=lambda images, _: len(images) == 4
    )
    with pytest.raises(GoldenMismatch, match="logits differ"):
        load_it()


@pytest.mark.parametrize(
    "other",
    [
        lambda card: Timed(card.model_copy(update={"precision": "fp16"}), "cpu", KNOWN),
        lambda card: Timed(card.model_copy(update={"labels": card.labels * 2}), "cpu", KNOWN),
        lambda card: Timed(card.model_copy(update={"structure": None}), "cpu", KNOWN),
        lambda card: Timed(
            card.model_copy(update={"structure": card.structure.model_copy(update={"option": "C"})}), "cpu", KNOWN
        ),
        lambda card: Timed(card, "cuda", KNOWN),
        lambda card: Timed(card, "cpu", replace(KNOWN, lanes=3)),
        lambda card: Timed(card, "cpu", replace(KNOWN, table=(*KNOWN.table, Cost(8, 10.0, 1.0, True)))),
    ],
    ids=["precision", "classes", "unknown layers", "layers", "device", "cores", "batch size"],
)
def test_what_was_timed_of_something_else_is_of_no_use(other: Callable[[ModelCard], Timed], digits_model: Path) -> None:
    _, load_it = watched(digits_model, other(card_in(digits_model)))
    assert load_it().costs.lone_seconds < 7


def test_where_there_is_less_memory_than_before_a_model_is_timed_anew(digits_model: Path) -> None:
    timed = Timed(card_in(digits_model), "cpu", KNOWN)
    _, load_it = watched(digits_model, timed, seconds={"together": 0.01, "spread": 0.01}, room=2)
    assert max(load_it().costs.sizes) <= 2


@pytest.mark.parametrize(
    "told",
    [{}, {"seconds": {"together": 0.1, "spread": 0.1}}, {"seconds": {"together": 0.03, "spread": 0.03}, "room": 1}],
    ids=["fast", "slow", "without memory for two"],
)
def test_every_golden_image_is_run_however_the_timing_goes(told: dict[str, Any], digits_model: Path) -> None:
    backend, load_it = watched(digits_model, **told)
    loaded = load_it()
    assert len(backend.images) == 8
    assert told.get("room", 8) >= loaded.costs.lanes


@pytest.mark.parametrize(
    "wrong",
    [
        lambda images, _: len(images) == 1,
        lambda images, _: len(images) == 4,
        lambda _, arrangement: arrangement == "together",
        lambda _, arrangement: arrangement == "spread",
    ],
    ids=["one image", "four images", "together", "spread"],
)
def test_golden_images_prove_each_batch_size_and_arrangement_that_is_timed(
    wrong: Callable[[Array, Arrangement], bool], digits_model: Path
) -> None:
    _, load_it = watched(digits_model, wrong=wrong)
    with pytest.raises(GoldenMismatch, match="logits differ"):
        load_it()


@pytest.mark.parametrize("number", [1, 4, 7])
def test_what_is_kept_has_run_every_golden_image_itself(number: int, digits_model: Path) -> None:
    golden = golden_pixels(load_file(digits_model)[0].card)[number]

    def wrong(images: Array, arrangement: Arrangement) -> bool:
        return arrangement == "together" and any((each == golden).all() for each in images)

    _, load_it = watched(digits_model, wrong=wrong, seconds={"together": 0.03, "spread": 0.15})
    with pytest.raises(GoldenMismatch, match="logits differ"):
        load_it()


def test_a_card_for_another_number_of_classes_is_refused(digits_model: Path, tmp_path: Path) -> None:
    def edit(card: dict[str, Any]) -> None:
        card["labels"] = card["labels"][:9]
        card["golden"] = []

    with pytest.raises(ArtifactError, match="gives 10 classes, but there are 9 labels"):
        load_file(changed(digits_model, tmp_path, change_card(edit)))


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x0a" * 100])
def test_a_file_that_is_no_model_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken" / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"it is no ONNX file|onnxruntime cannot load it"):
        load_file(path)


def test_a_truncated_model_is_refused(digits_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "digits" / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(digits_model.read_bytes()[:-100_000])
    with pytest.raises(ArtifactError):
        load_file(path)


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_a_device_that_is_missing_is_never_replaced_by_the_cpu(device: Any, digits_model: Path) -> None:
    import onnxruntime

    if len(onnxruntime.get_available_providers()) > 2:
        pytest.skip("this onnxruntime has more than the CPU provider")
    with pytest.raises(DeviceError, match=f"device {device} was asked for"):
        open_onnx(digits_model, device, threads=1)


def test_auto_takes_the_cpu_where_there_is_nothing_else(digits_model: Path) -> None:
    assert open_onnx(digits_model, "auto", threads=1).device in ("cpu", "cuda")


PLAIN_CONFIG: dict[str, Any] = {
    "labels": ["red", "green", "blue"],
    "preprocessing": {
        "resize": 8,
        "crop": 8,
        "interpolation": "bilinear",
        "mean": [0.1, 0.2, 0.3],
        "std": [0.5, 0.25, 0.2],
    },
}


def write_plain(folder: Path, shape: list[str | int], axes: list[int]) -> Path:
    """A foreign classifier: the mean of each normalised channel, without a card."""
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=0)],
        "mean",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [shape[0], 3])],
        [numpy_helper.from_array(np.array(axes, dtype=np.int64), "axes")],
    )
    path = folder / "plain" / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


@pytest.mark.parametrize(
    ("shape", "axes", "max_batch"),
    [(["n", 3, 8, 8], [2, 3], 8), (["n", 8, 8, 3], [1, 2], 8), ([1, 3, 8, 8], [2, 3], 1)],
    ids=["NCHW", "NHWC", "fixed batch"],
)
def test_a_plain_classifier_is_served_with_its_config(
    shape: list[str | int], axes: list[int], max_batch: int, tmp_path: Path
) -> None:
    path = write_plain(tmp_path, shape, axes)
    (tmp_path / "plain" / "config.json").write_text(json.dumps(PLAIN_CONFIG))
    loaded, _ = load_file(path)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), dtype=np.uint8)
    expected = ((pixels / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.25, 0.2]).mean(axis=(1, 2))
    np.testing.assert_allclose(loaded.backend.run(pixels).logits, expected, atol=1e-5)
    assert (loaded.golden_max_abs_diff, loaded.card.precision) == (None, "unknown")
    assert loaded.costs.sizes[-1] <= max_batch


@contextmanager
def changed_plain(folder: Path) -> Iterator[tuple[Path, onnx.GraphProto]]:
    """A plain model of the mean of each channel, with its configuration, whose graph is to be changed."""
    path = write_plain(folder, ["n", 3, 8, 8], [2, 3])
    proto = onnx.load(path)
    yield path, proto.graph
    onnx.save(proto, path)
    (folder / "plain" / "config.json").write_text(json.dumps(PLAIN_CONFIG))


def test_a_graph_that_answers_only_the_first_image_of_a_batch_is_refused(tmp_path: Path) -> None:
    with changed_plain(tmp_path) as (path, graph):
        graph.node[0].output[0] = "all"
        for name, value in {"start": 0, "end": 1}.items():
            graph.initializer.append(numpy_helper.from_array(np.array([value]), name))
        graph.node.append(helper.make_node("Slice", ["all", "start", "end"], ["y"]))
        graph.output[0].type.tensor_type.shape.dim[0].dim_param = "m"
    with pytest.raises(ArtifactError, match=r"a batch of 2 gives logits \(1, 3\)"):
        load_file(path)


def test_a_graph_whose_logits_have_no_rank_is_refused(tmp_path: Path) -> None:
    with changed_plain(tmp_path) as (path, graph):
        graph.node[0].output[0] = "all"
        graph.node.append(helper.make_node("Shape", ["all"], ["shape"]))
        graph.node.append(helper.make_node("NonZero", ["shape"], ["places"]))
        graph.node.append(helper.make_node("Squeeze", ["all"], ["y"]))
        graph.output[0].type.tensor_type.ClearField("shape")
    with pytest.raises(ArtifactError, match=r"gives \[\] instead of logits \[batch, 3\]"):
        load_file(path)


def test_a_graph_that_runs_single_images_only_is_refused(tmp_path: Path) -> None:
    with changed_plain(tmp_path) as (path, graph):
        for name, value in {"flat": np.array([1, 192]), "weights": np.ones((192, 3), np.float32)}.items():
            graph.initializer.append(numpy_helper.from_array(value, name))
        graph.node[0].CopyFrom(helper.make_node("Reshape", ["x", "flat"], ["all"]))
        graph.node.append(helper.make_node("MatMul", ["all", "weights"], ["y"]))
    with pytest.raises(ArtifactError, match="it cannot run a batch of 2: "):
        load_file(path)


def test_a_slow_graph_that_answers_only_the_first_image_of_a_batch_is_refused_too(tmp_path: Path) -> None:
    backend = ColourBackend()
    backend.seconds = 0.06  # to time a batch of two would take longer than a start may
    run = backend.run
    backend.run = lambda images, **how: run(images[:1], **how)  # type: ignore[method-assign]
    path = tmp_path / "model.onnx"
    path.write_bytes(b"a model")
    with pytest.raises(ArtifactError, match=r"a batch of 2 gives logits \(1, 3\)"):
        load(Location("colours", 1, path), Opener(backend.open), 8, lambda _: None)


def test_a_model_is_served_in_the_batches_for_which_the_device_has_memory(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"a model")
    backend = ColourBackend()
    backend.most = 4
    loaded = load(Location("colours", 1, path), Opener(backend.open), 32, lambda _: None)
    assert loaded.costs.sizes == (1, 2, 4)
    backend.most = 0
    with pytest.raises(TooLarge, match="a batch of 1 needs more memory than the device has free"):
        load(Location("colours", 1, path), Opener(backend.open), 32, lambda _: None)


def test_a_plain_classifier_without_a_config_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    path = write_plain(tmp_path, ["n", 3, 8, 8], [2, 3])
    with pytest.raises(ArtifactError, match=r"no model card and there is no .*config.json"):
        load_file(path)


@pytest.mark.parametrize("missing", ["labels", "preprocessing"])
def test_a_config_with_a_gap_is_refused(missing: str, tmp_path: Path) -> None:
    path = write_plain(tmp_path, ["n", 3, 8, 8], [2, 3])
    config = {key: value for key, value in PLAIN_CONFIG.items() if key != missing}
    (tmp_path / "plain" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match=missing):
        load_file(path)


def test_a_copy_of_an_artifact_under_another_name_is_served_under_that_name(digits_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "copied" / "3" / "model.onnx"
    path.parent.mkdir(parents=True)
    shutil.copy(digits_model, path)
    loaded, _ = load_file(path)
    assert str(loaded.location) == "copied version 3"
