"""Which model files are let in: what reads nothing outside its folder and, where signers are set, what they signed."""

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from service.artifact import ArtifactError
from service.external_data import external_files, refuse_files_outside, refuse_other_files
from tests.system.server import run_command

ORDINARY = np.zeros((2, 3), dtype=np.float32)


def tensor_in(location: str, name: str = "w") -> TensorProto:
    tensor = numpy_helper.from_array(ORDINARY, name)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("offset", "0"), ("location", location), ("length", "24")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return tensor


def model_with(*initializers: TensorProto, nodes: tuple[onnx.NodeProto, ...] = ()) -> onnx.ModelProto:
    info = helper.make_tensor_value_info("images", TensorProto.FLOAT, [None, 2])
    out = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [None, 3])
    nodes = nodes or (helper.make_node("MatMul", ["images", "w"], ["logits"]),)
    graph = helper.make_graph(list(nodes), "g", [info], [out], list(initializers))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def write(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_files_are_found_wherever_a_tensor_may_lie(tmp_path: Path) -> None:
    constant = helper.make_node("Constant", [], ["c"], value=tensor_in("constant.bin"))
    branch = helper.make_graph([], "branch", [], [], [tensor_in("branch.bin")])
    conditional = helper.make_node("If", ["c"], ["d"], then_branch=branch, else_branch=branch)
    model = model_with(tensor_in("weights.bin"), nodes=(constant, conditional))
    model.functions.append(
        helper.make_function(
            "local", "f", [], ["y"], [helper.make_node("Constant", [], ["y"], value=tensor_in("function.bin"))], []
        )
    )
    sparse = helper.make_sparse_tensor(tensor_in("values.bin"), tensor_in("indices.bin", "i"), [2])
    model.graph.sparse_initializer.append(sparse)
    names = ["branch", "constant", "function", "indices", "values", "weights"]
    assert external_files(write(model, tmp_path)) == [f"{name}.bin" for name in names]


def test_a_whole_artifact_names_none(digits_model: Path) -> None:
    assert external_files(digits_model) == []


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "a/../../b", "link/x.bin"])
def test_a_file_outside_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "1"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    path = write(model_with(tensor_in(location)), folder)
    with pytest.raises(ArtifactError, match="outside its folder"):
        refuse_files_outside(path)


def test_a_file_in_the_folder_is_refused_only_where_the_one_file_was_sealed_or_signed(tmp_path: Path) -> None:
    path = write(model_with(tensor_in("model.onnx.data")), tmp_path)
    refuse_files_outside(path)
    with pytest.raises(ArtifactError, match=r"another file \('model.onnx.data'\)"):
        refuse_other_files(path)


@settings(max_examples=300)
@given(data=st.binary(max_size=200))
def test_what_is_no_model_is_refused_and_never_a_crash(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.onnx"
    path.write_bytes(data)
    with contextlib.suppress(ArtifactError):
        external_files(path)


def test_an_operator_of_no_known_domain_is_refused_in_one_line(tmp_path: Path) -> None:
    node = helper.make_node("Mine", ["images"], ["logits"], domain="com.example")
    model = model_with(nodes=(node,))
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    folder = tmp_path / "mine" / "1"
    folder.mkdir(parents=True)
    write(model, folder)
    done = run_command("check", "--models", str(tmp_path))
    assert done.returncode == 1
    assert "com.example" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.fixture
def signed(digits_models: Path, tmp_path: Path) -> tuple[Path, Path, Path]:
    """A signed copy of the digits: their folder, the file, and the signer's public key."""
    models = tmp_path / "models"
    shutil.copytree(digits_models, models)
    file = models / "digits" / "1" / "model.onnx"
    return models, file, sign(file, tmp_path / "signer")


def sign(file: Path, key: Path) -> Path:
    """As the documentation has it; the public key."""
    public = key.with_suffix(".pub")
    run = [
        ["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(key)],
        ["openssl", "pkey", "-in", str(key), "-pubout", "-out", str(public)],
        ["openssl", "pkeyutl", "-sign", "-inkey", str(key), "-rawin", "-in", str(file), "-out", f"{file}.sig"],
    ]
    for command in run:
        subprocess.run(command, check=True, capture_output=True)
    return public


def check(models: Path, signers: Path) -> tuple[int, str]:
    done = run_command("check", "--models", str(models), "--model-signers", str(signers))
    return done.returncode, done.stdout + done.stderr


def test_only_what_a_trusted_signer_signed_is_served(signed: tuple[Path, Path, Path], tmp_path: Path) -> None:
    models, file, signer = signed
    assert check(models, signer)[0] == 0
    other = sign(tmp_path / "signer", tmp_path / "other")
    code, text = check(models, other)
    assert code == 1
    assert "none of a signer that is trusted here" in text
    both = tmp_path / "both"
    both.write_bytes(other.read_bytes() + signer.read_bytes())
    assert check(models, both)[0] == 0
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert "none of a signer" in check(models, signer)[1]
    os.unlink(f"{file}.sig")
    assert "it is not signed: there is no model.onnx.sig beside it" in check(models, signer)[1]


@pytest.mark.parametrize("content", [b"", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", None])
def test_signers_that_cannot_be_read_stop_with_one_line(
    signed: tuple[Path, Path, Path], tmp_path: Path, content: bytes | None
) -> None:
    signers = tmp_path / "signers"
    if content is not None:
        signers.write_bytes(content)
    code, text = check(signed[0], signers)
    assert code == 1
    assert text.count("\n") == 1
    assert str(signers) in text
