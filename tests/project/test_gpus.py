"""A GPU is used where the marker says so, and nowhere else."""

from __future__ import annotations

import os


def test_no_other_test_sees_one(request):
    assert (os.environ.get("CUDA_VISIBLE_DEVICES") == "") == (request.config.getoption("markexpr") != "gpu")
