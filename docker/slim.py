"""Remove from the environment what a server never reads: pip itself, tests, headers and type stubs of the packages."""

import shutil
import sysconfig
from pathlib import Path

packages = Path(sysconfig.get_paths()["purelib"])
for name in ("pip", "setuptools", "wheel"):
    for found in packages.glob(f"{name}*"):
        shutil.rmtree(found) if found.is_dir() else found.unlink()
for pattern in ("**/tests", "**/include"):
    for found in sorted(packages.glob(pattern), reverse=True):
        if found.is_dir():
            shutil.rmtree(found)
for found in packages.glob("**/*.pyi"):
    found.unlink()
