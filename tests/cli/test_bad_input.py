"""Bad input ends with the right exit code, one line that says what and what to do, and nothing half-written."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import pickle  # noqa: TID251  # to plant one where weights belong, and see that nobody reads it
import re
import shlex
import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image
from safetensors.numpy import load_file, save_file

from tests.kit.distribution import install
from tests.kit.forks import Finished
from tests.kit.tiny import forget_source, resign_bundle
from tlkit import cli


@dataclass(frozen=True)
class Case:
    """A command line, how it has to end, and what was done to photos/ (three classes) and run/ (exported) before."""

    line: str
    code: int
    says: str  # a regular expression for the whole line on stderr, less the name of the program
    prepare: Callable[[Path], object] = lambda root: root


def snapshot(root: Path) -> dict[str, str]:
    """Everything below a folder, with the hashes of the files."""
    found = {}
    for path in root.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(root))] = hashlib.sha256(content).hexdigest()
    return found


def empty(root: Path, *classes: str) -> None:
    for name in classes:
        shutil.rmtree(root / "photos" / name)


def png_header(width: int, height: int) -> bytes:
    """A PNG that says how large it is, and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def flip(file: Path, place: int = -1) -> None:
    """Change one bit of one byte."""
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def change_tensors(run: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    tensors = load_file(run / "head.safetensors")
    change(tensors)
    save_file(tensors, run / "head.safetensors")
    resign_bundle(run)


def spoil(tensors: dict[str, np.ndarray]) -> None:
    tensors["bias"][0] = np.nan


class Payload:
    """The harm that a pickle can do to whoever reads it."""

    def __reduce__(self):
        return os.mkdir, ("pwned",)


def plant_pickle(run: Path) -> None:
    (run / "head.safetensors").write_bytes(pickle.dumps(Payload()))
    resign_bundle(run)


def point_outside(run: Path) -> None:
    file = run / "onnx/fp32/model.onnx"
    graph = onnx.load(file)
    tensor = graph.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.append(onnx.StringStringEntryProto(key="location", value="../../../secret"))
    (run.parent / "secret").write_bytes(bytes(10_000))
    shutil.copy(file, run.parent / "model.onnx")
    run.parent.joinpath("model.onnx").write_bytes(graph.SerializeToString())


def drop_labels(root: Path) -> None:
    graph = onnx.load(root / "run/onnx/fp32/model.onnx")
    facts = {prop.key: prop.value for prop in graph.metadata_props}
    helper.set_model_props(graph, {**facts, "tlkit.labels": '["dark"]'})
    onnx.save(graph, root / "model.onnx")


def take_floats(root: Path) -> None:
    graph = onnx.load(root / "run/onnx/fp32/model.onnx")
    graph.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    onnx.save(graph, root / "model.onnx")


def make_newer(root: Path) -> None:
    record = root / "run/bundle.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"format": 99, "tlkit": "9.9"}))


def write(root: Path, name: str, content: bytes | str) -> None:
    (root / name).write_bytes(content.encode() if isinstance(content, str) else content)


def make_few(root: Path) -> None:
    for label in ("dark", "light", "middle"):
        for number in range(4):
            (root / "few" / label).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / f"photos/{label}/{number:02}.png", root / f"few/{label}/{number:02}.png")


A_PLACE_FOR_EACH_CLASS = "put the images of each class into a folder of its own"
COMMAND = r"\(see: tlkit( \w+)? --help\)"

CASES = {
    # what to train on
    "no images": Case(
        "train photos -o out",
        3,
        f"photos: holds no images; {A_PLACE_FOR_EACH_CLASS}",
        lambda root: empty(root, "dark", "light", "middle"),
    ),
    "no such folder": Case("train nowhere -o out", 3, "nowhere: no such file or folder"),
    "not a folder": Case(
        "train photos/dark/00.png -o out", 3, r"photos/dark/00.png: neither a folder nor a table; give a folder .*"
    ),
    "one class": Case(
        "train photos -o out",
        3,
        "photos: only one class, 'dark'; at least two folders or labels are needed; add the images .*",
        lambda root: empty(root, "light", "middle"),
    ),
    "folds": Case(
        "train folds -o out",
        3,
        r"folds: one, two hold the same folders \(dark, light, middle\), as splits and folds do; if they are, .*",
        lambda root: [shutil.copytree(root / "photos", root / "folds" / name) for name in ("one", "two")],
    ),
    "a bundle to train on": Case("train run -o out", 3, "run: a bundle that tlkit wrote, not images"),
    "the same files in two splits": Case(
        "train twice -o out --strict",
        3,
        "leakage: 36 files again in another split, such as train/dark/00.png = val/dark/00.png; .* leave out --strict",
        lambda root: [shutil.copytree(root / "photos", root / "twice" / name) for name in ("train", "val")],
    ),
    "an empty class": Case(
        "train photos -o out",
        3,
        "photos: class folders without an image of their own: void; put images into them, or remove the folders",
        lambda root: (root / "photos/void").mkdir(),
    ),
    "classes alike": Case(
        "train photos -o out",
        3,
        "photos: class names that differ in case, spaces or Unicode form only: 'Dark' and 'dark'; give one class .*",
        lambda root: (root / "photos/light").rename(root / "photos/Dark"),
    ),
    "a table with holes": Case(
        "train photos/table.csv -o out",
        3,
        "photos/table.csv: invalid rows: row 2 names no file: none.png, row 3 has no label; fix or .*",
        lambda root: write(root, "photos/table.csv", "path,label\nnone.png,dark\ndark/00.png,\n"),
    ),
    # images
    "corrupt": Case(
        "train photos -o out",
        3,
        r"photos/dark/00.png: 1 of 36 images are unreadable, the first because: is not an image .*"
        r"; fix or remove them, or allow more than 1.0% with --max-bad",
        lambda root: write(root, "photos/dark/00.png", "no image"),
    ),
    "truncated": Case(
        "train photos -o out",
        3,
        "photos/dark/00.png: 1 of 36 images are unreadable, the first because: damaged, truncated .*",
        lambda root: write(root, "photos/dark/00.png", (root / "photos/dark/00.png").read_bytes()[:2000]),
    ),
    "huge": Case(
        "train photos -o out",
        3,
        "photos/dark/00.png: 1 of 36 .* because: 60000 x 60000 pixels take 28.8 GB to decode, more than 1.61 GB; .*",
        lambda root: write(root, "photos/dark/00.png", png_header(60000, 60000)),
    ),
    "a class of corrupt images": Case(
        "train photos -o out --max-bad 1",
        3,
        "photos: no readable image to train on is left of dark; replace or remove .*, such as .*/dark/.*",
        lambda root: [file.write_text("no image") for file in (root / "photos/dark").iterdir()],
    ),
    "nothing to embed": Case(
        "embed run/onnx/fp32/trunk.onnx a.jpg -o f.npy",
        3,
        "a.jpg: none of the 1 images is readable, the first because: is an empty file",
        lambda root: write(root, "a.jpg", ""),
    ),
    "nothing to predict": Case("predict run photos/a.jpg void", 3, ".*photos/a.jpg: no such .*void: no such .*"),
    "a label unknown to the bundle": Case(
        "eval run photos",
        3,
        "photos: unknown labels: 'Lighter' .nearest: 'light'.; the known labels are 'dark', 'light', 'middle'",
        lambda root: (root / "photos/light").rename(root / "photos/Lighter"),
    ),
    "a split that is not there": Case(
        "eval run photos --split test", 2, "photos: it has no split 'test' of its own; leave out --split to use it all"
    ),
    # where to write
    "a bundle that exists": Case("train photos -o run", 2, "run: it exists already; choose another -o, or remove .*"),
    "a file that exists": Case(
        "train photos -o out", 2, "out: it exists already; .*", lambda root: write(root, "out", "mine")
    ),
    "a bundle inside a file": Case(
        "train photos -o file/run",
        5,
        "file/run: can't write: not a directory; choose a place inside a folder",
        lambda root: write(root, "file", "mine"),
    ),
    "features inside a file": Case(
        "embed run photos -o file/f.npy",
        5,
        "file/f.npy: can't write: not a directory; choose a place inside a folder",
        lambda root: write(root, "file", "mine"),
    ),
    "features over a folder": Case(
        "embed run photos -o f.npy",
        5,
        "f.npy: can't write: is a directory; choose the name of a file",
        lambda root: (root / "f.npy").mkdir(),
    ),
    "features of no kind": Case(
        "embed run photos -o f.csv", 2, "f.csv: not a format .*; end its name in .parquet or .npy"
    ),
    "an endless name": Case(f"train photos -o {'x' * 300}", 5, "x{300}: .*name too long.*"),
    # names
    "a backbone": Case(
        "train photos -o out --backbone efficientnet-lite",
        2,
        r"there is no backbone 'efficientnet-lite' \(did you mean 'efficientnet-lite\d'\?\); installed: .*",
    ),
    "a head and a strategy": Case(
        "train photos -o out --head logistics --strategy frosen",
        2,
        r"there is no strategy 'frosen' \(did you mean 'frozen'\?\).*"
        r"there is no head 'logistics' \(did you mean 'logistic'\?\).*",
    ),
    "a cut": Case(
        "train photos -o out --cut stage9", 2, "there is no stage 'stage9' to cut at; choose one of stem, stage1, .*"
    ),
    # phases
    "more moving stages than there are": Case(
        "train photos -o out --strategy partial --set strategy.trainable=20",
        2,
        r"strategy 'partial' \(tlkit [\d.]+\) can't be run: phase 1 trains 20 stages of 9",
    ),
    "no epochs": Case(
        "train photos -o out --strategy probe-then-tune --set strategy.epochs=0",
        2,
        r"strategy 'probe-then-tune' \(tlkit [\d.]+\) can't be run: phase 2 has 0 epochs",
    ),
    "options": Case(
        "train photos -o out --strategy frozen --set head.pac=3 --set hat.pca=3 --set head.pca=three",
        2,
        r"option head.pac: no such option.*\(did you mean 'pca'\?\); option hat.pca: no 'hat' to set here.*; "
        r"option head.pca: must be int, not 'three'",
    ),
    "an address": Case(
        "train made-up://bucket/x -o out",
        5,
        "(reading )?made-up://bucket/x (can't be reached|needs).*",
    ),
    "an address to predict": Case("predict run gs://bucket/a.jpg", 2, "gs://bucket/a.jpg: only local files .*"),
    "malformed options": Case(
        "train photos -o out --strategy frozen --set head.pca --set pca=3 --set head.pca=3 --set head.pca=4",
        2,
        "--set head.pca is not of the form kind.option=value; --set pca=3 is not of the form kind.option=value; "
        f"--set head.pca=4: head.pca was set to 3 before {COMMAND}",
    ),
    "a verb": Case("trian photos -o out", 2, f"there is no command 'trian'; did you mean 'train'. {COMMAND}"),
    "no verb like it": Case("frobnicate", 2, f"there is no command 'frobnicate'; see: tlkit --help {COMMAND}"),
    "a flag": Case("train photos -o out --bakbone x", 2, f"No such option.*--bakbone.*--backbone.*{COMMAND}"),
    "a missing flag": Case("train photos", 2, f"Missing option '-o' / '--out'. {COMMAND}"),
    "a missing argument": Case("predict run", 2, f"Missing argument .*IMAGES.*{COMMAND}"),
    "a share beyond 1": Case("train photos -o out --max-bad 3", 2, f"Invalid value for '--max-bad'.*{COMMAND}"),
    "no label": Case("predict run photos --topk 0", 2, f"Invalid value for '--topk'.*{COMMAND}"),
    "a negative seed": Case("train photos -o out --seed -1", 2, f"Invalid value for '--seed'.*{COMMAND}"),
    "no target": Case("export run", 2, f"name a target: --onnx.*{COMMAND}"),
    "a budget for fp32": Case(
        "export run --onnx --max-drop 1", 2, "--max-drop is for --precision int8 or fp16: fp32 loses nothing"
    ),
    "no fallback from nothing": Case(
        "export run --onnx --precision int8 --no-fallback", 2, "--no-fallback needs --max-drop"
    ),
    "a budget that is no number": Case(
        "export run --onnx --max-drop nan", 2, f"Invalid value for '--max-drop': 'nan' is not a number.*{COMMAND}"
    ),
    "a negative budget": Case("export run --onnx --max-drop -1", 2, f"Invalid value for '--max-drop'.*{COMMAND}"),
    "too few images to calibrate on": Case(
        "export run --onnx --precision int8 --data few",
        3,
        "few: [0-9]+ images to calibrate int8 on in its training split, at least 16 needed; name a larger .*",
        make_few,
    ),
    "images to calibrate on that are gone": Case(
        "export run --onnx --precision int8",
        3,
        "run: the images that it was trained on are not on this machine any more; name others like them with --data",
        lambda root: forget_source(root / "run"),
    ),
    # bundles
    "no bundle": Case("verify nowhere", 3, "nowhere: no such bundle; make one with: tlkit train photos/ -o run/"),
    "another folder": Case("verify photos", 4, "photos: not a bundle: it holds no bundle.json"),
    "another folder's graph": Case("predict photos photos", 4, "photos: neither a graph nor a bundle.*bundle.json"),
    "a flipped byte in the trunk": Case(
        "verify run",
        4,
        r"run/trunk.safetensors: it was changed after training \(SHA-256 differs\); copy the bundle again, or .*",
        lambda root: flip(root / "run/trunk.safetensors"),
    ),
    "a flipped byte in the head": Case(
        "export run --onnx",
        4,
        r"run/head.safetensors: it was changed after training .*",
        lambda root: flip(root / "run/head.safetensors"),
    ),
    "a flipped byte in a golden image": Case(
        "inspect run",
        4,
        r"run/golden/0.png: it was changed after training .*",
        lambda root: flip(root / "run/golden/0.png", 100),
    ),
    "a flipped byte in the record": Case(
        "predict run photos",
        4,
        r"run/bundle.json: it was changed after training \(digest differs\); copy it again",
        lambda root: write(
            root, "run/bundle.json", (root / "run/bundle.json").read_text().replace('"seed": 0', '"seed": 1')
        ),
    ),
    "a flipped byte in the graph": Case(
        "predict run photos",
        4,
        "run/onnx/fp32: model is missing or was changed after export; run: tlkit export run --onnx",
        lambda root: flip(root / "run/onnx/fp32/model.onnx"),
    ),
    "a record that is no JSON": Case(
        "inspect run", 4, "run/bundle.json: can't be read: .*", lambda root: write(root, "run/bundle.json", "{")
    ),
    "a newer format": Case("inspect run", 4, "run/bundle.json: bundle format 99, .*; use tlkit 9.9", make_newer),
    "a missing file": Case(
        "verify run",
        4,
        "run/head.safetensors: a file of the bundle is missing; copy the bundle again",
        lambda root: (root / "run/head.safetensors").unlink(),
    ),
    "a missing tensor": Case(
        "verify run",
        4,
        "run/head.safetensors: tensors are missing or not as recorded: bias.*",
        lambda root: change_tensors(root / "run", lambda tensors: tensors.pop("bias")),
    ),
    "a NaN": Case(
        "verify run",
        4,
        "run/head.safetensors: tensor bias holds values that are not finite; train again",
        lambda root: change_tensors(root / "run", spoil),
    ),
    "a pickle for weights": Case(
        "verify run",
        4,
        "run/head.safetensors: not a complete safetensors file: .*; copy it again",
        lambda root: plant_pickle(root / "run"),
    ),
    "a plugin that is not installed": Case(
        "export run --onnx",
        4,
        "needs backbone 'tiny' of tiny 1.0: it is not installed; run: pip install \"tiny==1.0\"",
    ),
    "not exported": Case(
        "predict run photos",
        4,
        "run/onnx/fp32: it was not exported yet; run: tlkit export run --onnx",
        lambda root: shutil.rmtree(root / "run/onnx"),
    ),
    "nothing to verify": Case(
        "verify run",
        4,
        "run: nothing was exported from it yet; run: tlkit export run --.*onnx",
        lambda root: shutil.rmtree(root / "run/onnx"),
    ),
    # graphs
    "no graph": Case("predict nowhere.onnx photos", 3, "nowhere.onnx: no such file or bundle"),
    "a picture for a graph": Case("predict photos/dark/00.png photos", 4, "photos/dark/00.png: not an ONNX file"),
    "weights outside": Case(
        "predict model.onnx photos",
        4,
        r"model.onnx: its weights lie in other files \(.*\), which is not safe to follow; export it again",
        lambda root: point_outside(root / "run"),
    ),
    "a graph without its head": Case(
        "predict run/onnx/fp32/trunk.onnx photos", 4, "run/onnx/fp32/trunk.onnx: this graph has .*; use model.onnx"
    ),
    "a graph of the head": Case(
        "embed run/onnx/fp32/head.onnx photos -o f.npy", 4, "run/onnx/fp32/head.onnx: not a graph .* from images .*"
    ),
    "a graph that takes something else": Case(
        "predict model.onnx photos", 4, "model.onnx: ONNX Runtime fails: .*; export it again", take_floats
    ),
    "a graph with a label for three classes": Case(
        "predict model.onnx photos",
        4,
        "model.onnx: it has 3 probabilities for 1 labels; export it again",
        drop_labels,
    ),
}


@pytest.fixture
def place(tmp_path, pictures, tiny_run):
    """A folder with photos/ and run/, and nothing else."""
    root = tmp_path / "place"
    shutil.copytree(pictures, root / "photos")
    shutil.copytree(tiny_run, root / "run")
    return root


@pytest.fixture
def here(monkeypatch, capfd):
    """Runs a command line in this process, which has imported torch already."""

    def run(*args, cwd, env):
        monkeypatch.chdir(cwd)
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        code = cli.run(args)
        return Finished(code, *capfd.readouterr())

    return run


def check(run, story, place, case):
    case.prepare(place)
    before = snapshot(place)
    finished = run(*shlex.split(case.line), cwd=place, env=story.env)
    assert finished.problems.count("\n") == 1, finished.err
    assert re.fullmatch(f"tlkit: {case.says}\n", finished.problems), finished.err
    assert (finished.code, finished.out) == (case.code, "")
    assert snapshot(place) == before


@pytest.mark.parametrize("name", CASES)
def test_is_refused_in_one_line_and_leaves_nothing(here, story, place, name):
    check(here, story, place, CASES[name])


@pytest.mark.parametrize(
    "name",
    [
        "corrupt",
        "nothing to embed",
        "a label unknown to the bundle",
        "features of no kind",
        "a pickle for weights",
        "weights outside",
        "features inside a file",
        "a verb",
    ],
)
def test_is_refused_in_a_process_of_its_own(tlkit, story, place, name):
    check(tlkit, story, place, CASES[name])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused_before_any_work(tlkit, story, place):
    place.chmod(0o500)
    for line in ("train photos -o out", "embed run photos -o f.npy", "export run --onnx"):
        finished = tlkit(*line.split(), cwd=place, env=story.env)
        assert finished.code == 5
        assert "choose a place you may write to" in finished.err


@pytest.mark.parametrize("kind", ["corrupt", "truncated", "huge", "gone", "a folder", "a pipe"])
def test_predict_names_a_picture_it_can_not_use_and_labels_the_others(tlkit, place, kind):
    bad = place / "bad.png"
    if kind == "a pipe":
        os.mkfifo(bad)  # nobody ever writes to it
    elif kind != "gone":
        good = (place / "photos/dark/00.png").read_bytes()
        bad.write_bytes(
            {"corrupt": b"no image", "truncated": good[:2000], "huge": png_header(60000, 60000)}.get(kind, b"")
        )
    before = snapshot(place)
    finished = tlkit("predict", "run", "photos/dark/01.png", "bad.png", "photos/light/01.png", cwd=place)
    if kind == "gone":
        assert finished.err == "tlkit: bad.png: no such file or folder\n"
        assert finished.out == ""
    else:
        assert [line.split("\t")[:2] for line in finished.out.splitlines()] == [
            ["photos/dark/01.png", "dark"],
            ["photos/light/01.png", "light"],
        ]
        rejected, error = finished.problems.splitlines()
        assert "3 files: 2 read, 1 rejected (1 .png)" in finished.err
        assert rejected.startswith("rejected bad.png: ")
        assert error.startswith("tlkit: bad.png: 1 of 3 images are unreadable, the first because: ")
        assert error.endswith("; fix or remove them")
    assert finished.code == 3
    assert snapshot(place) == before


@pytest.mark.parametrize(("allowed", "code"), [("0.02", 3), ("0.5", 0)])
def test_embed_keeps_what_it_could_use_and_lists_the_rest(tlkit, place, allowed, code):
    (place / "photos/dark/00.png").write_bytes(b"no image")
    finished = tlkit("embed", "run", "photos", "-o", "f.npy", "--max-bad", allowed, "--json", cwd=place)
    assert finished.code == code
    assert (finished.json["rows"], list(finished.json["rejected"])) == (35, ["photos/dark/00.png"])
    assert len(np.load(place / "f.npy")) == 35
    assert "photos/dark/00.png" in (place / "f.npy.rejects.csv").read_text()


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="tensorrt is installed")
def test_a_target_that_is_not_installed_is_refused_before_any_graph_is_made(tlkit, story, tmp_path):
    bundle = tmp_path / "run"
    shutil.copytree(story.run, bundle, ignore=lambda *_: ["onnx"])
    before = sorted(bundle.iterdir())
    finished = tlkit("export", bundle, "--tensorrt", "--precision", "fp16")
    assert finished.code == 5
    assert 'tensorrt is not installed; run: pip install "tensorrt"' in finished.err
    assert sorted(bundle.iterdir()) == before


def test_train_goes_on_without_a_few_bad_images_and_names_them(tlkit, story, place):
    (place / "photos/dark/00.png").write_bytes(b"no image")
    choice = ("--strategy", "frozen", "--max-bad", "0.05")
    finished = tlkit("train", "photos", "-o", "out", *choice, "--json", cwd=place, env=story.env)
    assert finished.code == 0
    assert list(finished.json["rejected"]) == ["dark/00.png"]
    assert finished.problems.startswith("rejected dark/00.png: is not an image")
    assert "36 files: 35 read, 1 rejected (1 .png)" in finished.err
    assert finished.json["files"] == {"read": 35, "rejected": {".png": 1}, "skipped": {}, "other_splits": 0}


def test_sixteen_bit_and_cmyk_pictures_are_seen_as_the_others(tlkit, story, tmp_path):
    with Image.open(min((story.root / "test/6").iterdir())) as digit:
        grey = digit.convert("L")
    grey.save(tmp_path / "plain.png")
    Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(tmp_path / "sixteen.png")
    grey.convert("CMYK").save(tmp_path / "cmyk.tif")
    grey.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    finished = tlkit("predict", story.model, tmp_path, "--json")
    assert finished.code == 0
    answers = {}
    for line in finished.out.splitlines():
        each = json.loads(line)
        answers[Path(each["path"]).name] = each["predictions"][0]
    assert len(answers) == 4
    plain = answers.pop("plain.png")
    for answer in answers.values():
        assert answer["label"] == plain["label"]
        assert answer["probability"] == pytest.approx(plain["probability"], abs=0.05)


def test_plugins_that_fail_are_told_of_once_and_stop_nothing(tlkit, story, tmp_path):
    install(tmp_path, "raising", "raise ValueError('out of order')")
    install(tmp_path, "exiting", "import sys\nsys.exit(3)")
    env = {**story.env, "PYTHONPATH": str(tmp_path)}
    finished = tlkit("plugins", "--json", env=env)
    assert finished.code == 0
    states = {plugin["name"]: (plugin["state"], plugin["reason"]) for plugin in finished.json["plugins"]}
    assert states["raising"] == ("broken", "it failed to load: ValueError: out of order")
    assert states["exiting"] == ("broken", "it failed to load: SystemExit: 3")
    assert states["standard"] == ("ok", None)
    warnings = [line for line in finished.err.splitlines() if line.startswith("tlkit: warning: ")]
    assert [re.search(r"plugin '(\w+)'", line)[1] for line in warnings] == ["exiting", "raising"]

    trained = tlkit("train", story.root / "photos", "-o", tmp_path / "run", "--strategy", "frozen", env=env)
    assert (trained.code, trained.err.count("tlkit: warning: ")) == (0, 2)
    predicted = tlkit("predict", story.model, story.root / "a.jpg", env=env)
    assert predicted.code == 0
    assert "warning" not in predicted.err  # it loads no plugin
