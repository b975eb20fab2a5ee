"""Files and addresses that are opened are seen, whichever library does it, and nothing is seen afterwards."""

from __future__ import annotations

import os
import socket
import urllib.request
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from safetensors import safe_open  # bound before anything watches

from tlkit.conformance.watch import BIG, Watch, is_weights, watching


@pytest.fixture
def weights(tmp_path):
    """Files of weights in each format."""
    tensors = {"x": torch.ones(3)}
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors")
    torch.save(tensors, tmp_path / "a.pth")
    np.save(tmp_path / "a.npy", np.ones(3))
    (tmp_path / "a.dat").write_bytes(bytes(BIG))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("a.safetensors", lambda file: safe_open(file, "pt")),
        ("a.safetensors", lambda file: safetensors.safe_open(file, "np")),
        ("a.safetensors", safetensors.torch.load_file),
        ("a.pth", torch.load),
        ("a.pth", lambda file: torch.load(file, mmap=True)),
        ("a.npy", np.load),
        ("a.npy", lambda file: np.load(file, mmap_mode="r")),
        ("a.dat", Path.read_bytes),
        ("a.dat", lambda file: os.close(os.open(file, os.O_RDONLY))),
    ],
)
def test_weights_that_are_read(weights, name, read):
    watch = Watch()
    with watching(watch):
        read(weights / name)
    assert set(watch.files) == {name}
    read(weights / name)
    assert set(watch.files) == {name}
    assert "watch" not in safetensors.safe_open.__module__


@pytest.mark.parametrize("read", [open, torch.load, safetensors.torch.load_file, np.load])
def test_weights_that_are_looked_for_and_missing(tmp_path, read):
    watch = Watch()
    with watching(watch), pytest.raises(FileNotFoundError):
        read(tmp_path / "missing.safetensors")
    assert set(watch.files) == {"missing.safetensors"}


def test_what_is_small_code_or_written_is_no_weights_file(tmp_path):
    (tmp_path / "big.py").write_bytes(b"#" * BIG)
    (tmp_path / "small.json").write_text("{}")
    watch = Watch()
    with watching(watch):
        (tmp_path / "big.py").read_bytes()
        (tmp_path / "small.json").read_text()
        torch.save({}, tmp_path / "written.pth")
        os.close(os.open(tmp_path / "written.bin", os.O_WRONLY | os.O_CREAT))
    assert watch.files == []


@pytest.mark.parametrize(
    ("path", "answer"), [("a.bin", True), (b"a.onnx", True), (Path("a.py"), False), (3, False), (None, False)]
)
def test_weights_are_known_by_their_names(path, answer):
    assert is_weights(path) is answer


@pytest.mark.parametrize(
    "reach",
    [
        lambda: socket.create_connection(("127.0.0.1", 9)),
        lambda: socket.getaddrinfo("example.invalid", 80),
        lambda: urllib.request.urlopen("http://127.0.0.1:9/weights"),
        lambda: torch.hub.load_state_dict_from_url("http://127.0.0.1:9/never.pth", model_dir=os.devnull + "x"),
    ],
)
def test_the_network_is_seen_and_out_of_bounds(reach):
    watch = Watch()
    with watching(watch), suppress(OSError):
        reach()
    assert len(watch.addresses) <= 1 or watch.addresses
    assert any("127.0.0.1" in address or "example.invalid" in address for address in watch.addresses)


def test_a_socket_of_this_machine_is_no_network(tmp_path):
    watch = Watch()
    with watching(watch), socket.socket(socket.AF_UNIX) as unix, pytest.raises(FileNotFoundError):
        unix.connect(str(tmp_path / "none"))
    assert watch.addresses == []


def test_watches_may_end_in_another_order_than_they_began(weights):
    first, second = Watch(), Watch()
    one, other = watching(first), watching(second)
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    safetensors.torch.load_file(weights / "a.safetensors")
    other.__exit__(None, None, None)
    assert (set(first.files), set(second.files)) == (set(), {"a.safetensors"})
    assert "watch" not in safetensors.safe_open.__module__
