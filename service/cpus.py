"""How many CPUs this process may use, the least of its affinity mask and its cgroup quota, and who goes first on them.

onnxruntime and os.cpu_count() count the host's cores, also in a container that was given two of sixty-four.
"""

import math
import os
import sys
import threading
from pathlib import Path

LOWEST_PRIORITY = 19
# Enough to be preempted at once by a thread that wakes up.
STEP_BACK = 10
CGROUP = Path("/sys/fs/cgroup")
SELF_CGROUP = Path("/proc/self/cgroup")


def yield_to_others() -> None:
    """Let this thread run only when no other wants to, from now on; where priorities are a thread's own, on Linux."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)


def step_back() -> None:
    """Let threads that wake up go before this one, from now on; where priorities are a thread's own, on Linux."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        # Linux takes LOWEST_PRIORITY for what would lie below it.
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + STEP_BACK)


def available_cpus() -> int:
    """Whole CPUs, at least 1; half a CPU of quota counts as one."""
    quota = cgroup_quota(CGROUP, SELF_CGROUP)
    # Only Linux has affinity masks.
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(affinity, quota)))


def cgroup_quota(root: Path, membership: Path) -> float:
    """CPUs granted by the tightest cgroup (v2 or v1) between this process and the root; infinity without a limit."""
    return min((_quota(folder) for folder in _cgroups(root, membership)), default=math.inf)


def _cgroups(root: Path, membership: Path) -> list[Path]:
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        lines = []
    folders = [root, root / "cpu"]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        base = root if not controllers else root / "cpu"
        if not controllers or "cpu" in controllers.split(","):
            own = base / path.lstrip("/")
            folders += [own, *(parent for parent in own.parents if base in parent.parents)]
    return folders


def _quota(folder: Path) -> float:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return math.inf
    return math.inf if quota in ("max", "-1") else int(quota) / int(period)
