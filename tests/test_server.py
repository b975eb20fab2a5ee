"""Arguments of `serve` are checked before anything is opened."""

from __future__ import annotations

import pytest

import tlkit
from tlkit import cli
from tlkit.errors import DataError

pytest.importorskip("uvicorn", reason="needs tlkit[serve]")


def test_what_is_no_certificate_is_named(tmp_path):
    for name in ("certificate.pem", "key.pem"):
        (tmp_path / name).write_text("-----BEGIN NOTHING-----")
    with pytest.raises(DataError, match=r"certificate\.pem: it and the key can't be used: \[SSL"):
        tlkit.serve("nowhere", certificate=tmp_path / "certificate.pem", key=tmp_path / "key.pem")
    with pytest.raises(DataError, match=r"no\.pem: no such file"):
        tlkit.serve("nowhere", certificate=tmp_path / "no.pem", key=tmp_path / "key.pem")


def test_a_token_file_that_is_missing_is_named(tmp_path, capsys):
    assert cli.run(["serve", "nowhere", "--token-file", str(tmp_path / "token")]) == 3
    assert capsys.readouterr().err.endswith("token: can't be read: no such file or directory\n")
