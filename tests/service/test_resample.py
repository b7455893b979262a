"""The compiled resize gives Pillow's pixels to the last bit, and is not missed where it cannot be had."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import service
from service.resample import KERNEL, RESAMPLING, Window, resample

SIDES = st.integers(1, 300)


@st.composite
def windows(draw: st.DrawFn) -> tuple[tuple[int, int], Window]:
    size = draw(SIDES), draw(SIDES)
    left, top = (draw(st.integers(0, side - 1)) for side in size)
    return size, Window(left, top, draw(st.integers(1, size[0] - left)), draw(st.integers(1, size[1] - top)))


@settings(max_examples=300)
@given(
    width=SIDES, height=SIDES, target=windows(), interpolation=st.sampled_from(sorted(RESAMPLING)), hard=st.booleans()
)
def test_any_window_of_any_resize_equals_pillows(
    width: int, height: int, target: tuple[tuple[int, int], Window], interpolation: str, hard: bool
) -> None:
    size, window = target
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    if hard:  # edges between black and white, where filters with negative parts overshoot
        pixels = np.where(pixels > 127, 255, 0).astype(np.uint8)
    expected = np.asarray(Image.fromarray(pixels).resize(size, RESAMPLING[interpolation]))
    expected = expected[window.top : window.top + window.height, window.left : window.left + window.width]
    np.testing.assert_array_equal(resample(pixels, *size, interpolation, window), expected)


def test_a_view_with_gaps_between_its_rows_is_read_right() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (80, 120, 3), dtype=np.uint8)[::2, ::-1]
    expected = np.asarray(Image.fromarray(pixels).resize((60, 32), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(resample(pixels, 60, 32, "bilinear", Window(0, 0, 60, 32)), expected)


@pytest.mark.skipif(KERNEL is None, reason="there is no compiled kernel to compare with")
def test_without_the_kernel_pillow_gives_the_same_pixels(tmp_path: Path) -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import numpy as np; from service.resample import *; "
        "pixels = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8); "
        "assert (KERNEL is None) == (sys.argv[2] == 'without'), KERNEL; "
        "sys.stdout.buffer.write(resample(pixels, 50, 64, 'bicubic', Window(5, 6, 32, 40)).tobytes())"
    )
    package = Path(service.__file__).parent
    (tmp_path / "service").mkdir()
    for name in ("__init__.py", "resample.py"):
        (tmp_path / "service" / name).write_bytes((package / name).read_bytes())
    answers = [
        subprocess.run([sys.executable, "-c", script, str(root), which], capture_output=True, check=True).stdout
        for root, which in ((package.parent, "with"), (tmp_path, "without"))
    ]
    assert answers[0] == answers[1] != b""
