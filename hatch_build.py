"""Build hook: compile the resize kernel beside its source. Without a C compiler the service resizes with Pillow."""

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = "service/resample.c"
LIBRARY = "service/libresample.so"
# A fused multiply-add would round the coefficients differently from Pillow's.
FLAGS = ("-O3", "-ffp-contract=off", "-fPIC", "-shared")


class CompileKernel(BuildHookInterface[Any]):  # type: ignore[misc]  # hatchling is only there while building
    """Runs for wheels and for editable installs."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002  hatchling's signature
        """Compile, and mark the wheel as one for this platform."""
        root = Path(self.root)
        library = root / LIBRARY
        library.unlink(missing_ok=True)
        compiler = shutil.which(os.environ.get("CC", "cc"))
        if compiler is None:
            self.app.display_warning("no C compiler: images will be resized by Pillow, which takes twice as long")
            return
        command = [compiler, *FLAGS, "-o", str(library), str(root / SOURCE), "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode:
            self.app.display_warning(f"the resize kernel was not compiled, Pillow resizes: {done.stderr.strip()}")
            return
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"
        build_data["artifacts"].append(LIBRARY)
