"""Memory that a training keeps between its layers."""

from __future__ import annotations

import platform

import pytest
import torch

from tlkit.benchmarking.run import resident
from tlkit.util import memory

LARGE = 64 * 2**20  # bytes


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's memory is kept")
def test_freed_memory_is_kept_inside_and_given_back_afterwards():
    with memory.kept():
        piece = torch.ones(LARGE // 4)
        used = resident()
        del piece
        kept = resident()
    after = resident()
    assert used - kept < LARGE / 4
    assert kept - after > LARGE / 2


def test_elsewhere_nothing_is_changed(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("musl", "1.2"))
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: pytest.fail("another C library was touched"))
    with memory.kept():
        torch.ones(3)
