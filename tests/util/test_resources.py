"""Processors and memory of the process."""

from __future__ import annotations

import math
import os
import platform

import pytest
import torch

from tlkit.util import resources
from tlkit.util.resources import keep_freed_memory, processor_kind, resident_memory

LARGE = 64 * 2**20  # bytes


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's memory is kept")
def test_freed_memory_is_kept_inside_and_given_back_afterwards():
    with keep_freed_memory():
        piece = torch.ones(LARGE // 4)
        used = resident_memory()
        del piece
        kept = resident_memory()
    after = resident_memory()
    assert used - kept < LARGE / 4
    assert kept - after > LARGE / 2


def test_elsewhere_nothing_is_changed(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("musl", "1.2"))
    monkeypatch.setattr(resources.ctypes, "CDLL", lambda _: pytest.fail("another C library was touched"))
    with keep_freed_memory():
        torch.ones(3)


def control_group(root, lines, **limits):
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(lines)
    for path, text in limits.items():
        file = root / "sys/fs/cgroup" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


@pytest.mark.parametrize(
    ("lines", "limits", "quota"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, math.inf),
        ("0::/a/b\n", {"a/b/cpu.max": "400000 100000\n", "a/cpu.max": "200000 100000\n"}, 2.0),
        ("0::/gone\n", {}, math.inf),
        (
            "5:memory:/x\n4:cpu,cpuacct:/x\n",
            {"cpu/x/cpu.cfs_quota_us": "300000\n", "cpu/x/cpu.cfs_period_us": "100000\n"},
            3.0,
        ),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
    ],
)
def test_the_quota_of_a_container_is_known(tmp_path, lines, limits, quota):
    assert resources.cpu_quota(control_group(tmp_path, lines, **limits)) == quota


def test_without_control_groups_there_is_no_quota(tmp_path):
    assert resources.cpu_quota(tmp_path) == math.inf


def test_cores_are_those_of_affinity_quota_and_option(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(64)), raising=False)
    monkeypatch.setattr(resources, "cpu_quota", lambda: math.inf)
    assert resources.cores() == 64
    monkeypatch.setattr(resources, "cpu_quota", lambda: 2.5)
    assert resources.cores() == 3
    monkeypatch.setattr(resources, "_at_most", [2])
    assert resources.cores() == 2


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        ("sse4 avx2 avx512f avx512_vnni", "x86-64 VNNI"),
        ("avx2 avx_vnni", "x86-64 VNNI"),
        ("avx2 avx512f", "x86-64 AVX-512"),
        ("avx2", "x86-64 AVX2"),
        ("sse4", "x86-64"),
    ],
)
def test_kinds_of_processors_differ_where_int8_sums_do(monkeypatch, flags, kind):
    monkeypatch.setattr(resources, "processor_info", {"flags": flags}.get)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert processor_kind() == kind
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert processor_kind() == "aarch64"
