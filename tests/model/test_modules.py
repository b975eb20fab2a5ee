"""The modules of a bundle are those that were trained."""

from __future__ import annotations

import numpy as np

from tlkit.data.preprocessing import load
from tlkit.model.bundle import open_bundle
from tlkit.model.modules import load_modules, run_modules
from tlkit.plugin.contract import FEATURES, LOGITS


def test_the_modules_of_a_bundle_are_those_that_were_trained(tiny_run, tiny_config):
    bundle = open_bundle(tiny_run)
    trunk, head = load_modules(bundle, tiny_config.backbone, tiny_config.head)
    expected = bundle.expected()
    pixels = np.stack([load(content, bundle.record.preprocessing) for content in bundle.golden_bytes()])
    got = run_modules(trunk, head, pixels)
    assert np.allclose(got[FEATURES], expected[FEATURES], atol=1e-4)
    assert np.allclose(got[LOGITS], expected[LOGITS], atol=1e-4)
