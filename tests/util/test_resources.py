"""Processors and memory of the process."""

from __future__ import annotations

import platform

import pytest
import torch

from tlkit.util import resources
from tlkit.util.resources import keep_freed_memory, resident_memory

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
