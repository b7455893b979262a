"""CPUs are counted as the container was granted them."""

import math
import os
from pathlib import Path

import pytest

from service.cpus import available_cpus, cgroup_quota


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_v2_takes_the_tightest_limit_on_the_way_up(tmp_path: Path) -> None:
    write(tmp_path / "membership", "0::/pod/container\n")
    write(tmp_path / "cgroup" / "cpu.max", "max 100000\n")
    write(tmp_path / "cgroup" / "pod" / "cpu.max", "150000 100000\n")
    write(tmp_path / "cgroup" / "pod" / "container" / "cpu.max", "400000 100000\n")
    assert cgroup_quota(tmp_path / "cgroup", tmp_path / "membership") == 1.5


def test_v2_inside_a_container_sees_its_own_limit_at_the_root(tmp_path: Path) -> None:
    write(tmp_path / "membership", "0::/\n")
    write(tmp_path / "cgroup" / "cpu.max", "50000 100000\n")
    assert cgroup_quota(tmp_path / "cgroup", tmp_path / "membership") == 0.5


def test_v1_reads_the_cpu_controller(tmp_path: Path) -> None:
    write(tmp_path / "membership", "4:cpu,cpuacct:/docker/abc\n3:memory:/docker/abc\n")
    folder = tmp_path / "cgroup" / "cpu" / "docker" / "abc"
    write(folder / "cpu.cfs_quota_us", "300000\n")
    write(folder / "cpu.cfs_period_us", "100000\n")
    assert cgroup_quota(tmp_path / "cgroup", tmp_path / "membership") == 3.0


@pytest.mark.parametrize("text", ["max 100000\n", ""])
def test_no_limit_is_infinite(text: str, tmp_path: Path) -> None:
    write(tmp_path / "membership", "0::/\n")
    write(tmp_path / "cgroup" / "cpu.max", text)
    assert cgroup_quota(tmp_path / "cgroup", tmp_path / "membership") == math.inf
    assert cgroup_quota(tmp_path / "nowhere", tmp_path / "no membership") == math.inf


def test_this_machine_grants_at_least_one_and_at_most_its_affinity() -> None:
    assert 1 <= available_cpus() <= len(os.sched_getaffinity(0))
