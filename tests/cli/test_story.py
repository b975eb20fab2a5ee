"""The story of a user, from a folder of images to proven models, with the console script and the real weights."""

from __future__ import annotations

import csv
import io
import json
import shlex
from unittest.mock import ANY

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

DIGITS = ["0", "1", "5", "6"]


@pytest.fixture
def do(tlkit, story):
    """Runs tlkit where the story took place; it has to succeed."""

    def run(*args, cwd=story.root):
        finished = tlkit(*args, cwd=cwd, env=story.env)
        assert finished.code == 0, finished.err
        return finished

    return run


def test_train_tells_what_it_did_on_stdout_and_what_comes_next_on_stderr(story):
    out, err = story.said["train"].out.splitlines(), story.said["train"].err.splitlines()
    assert out[0] == "efficientnet-lite0 up to last, strategy frozen, head logistic"
    assert [line.split() for line in out[1:7]] == [
        ["images", "train", "val", "recall"],
        *([label, ANY, ANY, ANY] for label in DIGITS),
        ["4", "classes", "50", "10"],
    ]
    assert out[7].startswith("60 images decoded")
    assert out[8].startswith("validation accuracy")
    assert err[0].startswith("4 classes (train/val): 0 1")
    assert err[1:] == ["wrote run", "next: tlkit export run --onnx"]


def test_export_tells_of_every_graph(story):
    out, err = story.said["export"].out.splitlines(), story.said["export"].err.splitlines()
    assert out[0] == "run/onnx/fp32: checked on 10 images from the validation split of photos"
    assert [line.split(":")[0].strip() for line in out[1:]] == ["trunk", "head", "model"]
    assert err == ["wrote run/onnx/fp32", "next: tlkit verify run"]


def test_each_command_names_the_next_and_that_one_runs(story, shell):
    line, verbs = story.said["export"].next, []
    while line.split()[1] not in verbs:
        verbs.append(line.split()[1])
        done = shell(line, cwd=story.root, env=story.env)
        assert done.code == 0, (line, done.err)
        assert done.err.splitlines()[-2].startswith("wrote ")
        line = done.next
    assert verbs == ["verify", "predict", "embed", "inspect"]
    (story.root / "features.parquet").unlink()


def test_the_next_command_fits_what_was_given(do, story):
    assert do("eval", "run", "test/").next == "tlkit predict run test"
    assert do("predict", "run", "a.jpg", "test/0").next == "tlkit embed run a.jpg test/0 -o features.parquet"
    assert do("predict", "run", *["a.jpg"] * 4).next == "tlkit embed run IMAGE... -o features.parquet"
    assert do("inspect", story.model).next == f"tlkit predict {story.model} IMAGE..."
    assert do("plugins").next == "tlkit train photos/ -o run/"


def test_another_backbone_cut_head_and_option_go_all_the_way(do, tmp_path):
    choice = ["--backbone", "efficientnet-lite1", "--cut", "stage4", "--head", "svm", "--set", "head.pca=128"]
    bundle = tmp_path / "run"
    trained = do("train", "photos/", "-o", bundle, *choice, "--json").json
    assert (trained["backbone"], trained["cut"], trained["head"]) == ("efficientnet-lite1", "stage4", "svm")
    assert trained["images"] == {"train": 50, "val": 10, "test": 0}
    assert trained["decoded"] == 60
    exported = do("export", bundle, "--onnx", "--json").json["exports"]
    assert [each["folder"] for each in exported] == [str(bundle / "onnx/fp32")]
    verdicts = exported[0]["parity"]
    assert {name: verdict["passed"] for name, verdict in verdicts.items()} == {
        "trunk": True,
        "head": True,
        "model": True,
    }
    assert do("verify", bundle, "--json").json["onnx/fp32"]["passed"] is True
    facts = do("inspect", bundle, "--json").json
    assert facts["digest"] == trained["digest"]
    assert facts["stages"] == ["stem", "stage1", "stage2", "stage3", "stage4"]
    assert (facts["width"], facts["preprocessing"]["size"], facts["head"]["options"]["pca"]) == (80, 240, 128)
    assert facts["exports"] == ["onnx/fp32"]


@pytest.mark.parametrize("choice", [("--head", "nearest-mean"), ("--cut", "stage5")], ids=" ".join)
def test_another_head_or_cut_decodes_no_image_again(do, tmp_path, choice):
    trained = do("train", "photos/", "-o", tmp_path / "run", "--strategy", "frozen", *choice, "--json").json
    assert trained["decoded"] == 0
    assert trained["images"]["train"] + trained["images"]["val"] == 60


def test_predict_labels_files_and_folders_in_order(do, story):
    finished = do("predict", "run/onnx/fp32/model.onnx", "a.jpg", "test/5")
    rows = [line.split("\t") for line in finished.out.splitlines()]
    names = ["a.jpg", *(f"test/5/{file.name}" for file in sorted((story.root / "test/5").iterdir()))]
    assert [row[0] for row in rows] == names
    assert {row[1] for row in rows} <= set(DIGITS)
    assert [row[1] for row in rows].count("5") >= 4
    assert all(0.25 <= float(row[2]) <= 1 for row in rows)
    assert finished.err.splitlines()[0] == "wrote nothing"


def test_predict_gives_as_many_labels_as_asked_for_best_first(do):
    plain = do("predict", "run", "a.jpg", "b.jpg", "--topk", "3").out.splitlines()
    objects = [
        json.loads(line) for line in do("predict", "run", "a.jpg", "b.jpg", "--topk", "3", "--json").out.splitlines()
    ]
    assert [each["path"] for each in objects] == ["a.jpg", "b.jpg"]
    for line, each in zip(plain, objects, strict=True):
        best = each["predictions"]
        assert len(best) == 3
        assert [p["probability"] for p in best] == sorted((p["probability"] for p in best), reverse=True)
        cells = [cell for p in best for cell in (p["label"], f"{p['probability']:.4f}")]
        assert line == "\t".join([each["path"], *cells])
    every = json.loads(do("predict", "run", "a.jpg", "--topk", "99", "--json").out)["predictions"]
    assert sorted(p["label"] for p in every) == DIGITS
    assert sum(p["probability"] for p in every) == pytest.approx(1, abs=1e-5)


def test_embed_writes_the_same_features_to_parquet_and_npy(do, story, tmp_path):
    facts = do("embed", "run/", "photos/", "-o", tmp_path / "f.parquet", "--json")
    assert facts.json["rows"] == 60
    assert facts.err.splitlines() == [f"wrote {tmp_path}/f.parquet", "next: tlkit inspect run"]
    table = parquet.read_table(tmp_path / "f.parquet")
    assert table.column_names == ["path", "sha256", "features"]
    assert table.schema.field("features").type == pa.list_(pa.float32(), 1280)
    assert table["path"].to_pylist() == sorted(str(f.relative_to(story.root)) for f in story.root.glob("photos/*/*"))
    do("embed", "run/onnx/fp32/trunk.onnx", "photos/", "-o", tmp_path / "f.npy")
    features = np.stack(table["features"].to_numpy(zero_copy_only=False))
    assert np.array_equal(np.load(tmp_path / "f.npy"), features)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "f.npy.csv").read_text())))
    assert [row["sha256"] for row in rows] == table["sha256"].to_pylist()


def test_eval_measures_on_a_class_folder(do):
    plain, facts = do("eval", "run/", "test/").out, do("eval", "run/", "test/", "--json").json
    assert (facts["split"], facts["images"], facts["labels"]) == ("all", 20, DIGITS)
    assert facts["interval"][0] < facts["accuracy"] <= facts["interval"][1]
    assert facts["accuracy"] >= 0.75
    confusion = np.array(facts["confusion"])
    assert confusion.sum(1).tolist() == [5, 5, 5, 5]
    assert confusion.trace() / 20 == pytest.approx(facts["accuracy"])
    assert f"accuracy           {facts['accuracy']:.1%}" in plain
    for name in ("balanced accuracy", "macro-F1", "ECE", "confusion matrix"):
        assert name in plain
    assert [line.split() for line in plain.splitlines()[-5:]] == [
        [*DIGITS, "recall"],
        *(
            [label, *map(str, row), f"{row[at] / 5:.1%}"]
            for at, (label, row) in enumerate(zip(DIGITS, confusion, strict=True))
        ),
    ]


def test_eval_measures_on_a_split(do, story, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train").symlink_to(story.root / "photos")
    (tmp_path / "data/test").symlink_to(story.root / "test")
    assert do("eval", "run", tmp_path / "data", "--json").json["split"] == "test"
    named = do("eval", "run", tmp_path / "data", "--split", "train", "--json").json
    assert named["split"] == "train"
    assert 40 <= named["images"] < 60  # without a val of its own, some of train become it


def test_inspect_tells_what_a_bundle_and_a_graph_are(do, story):
    bundle, graph = do("inspect", "run", "--json").json, do("inspect", story.model, "--json").json
    assert bundle["labels"] == graph["labels"] == DIGITS
    assert bundle["digest"] == graph["bundle"]
    assert bundle["backbone"]["name"] == graph["backbone"] == "efficientnet-lite0"
    assert bundle["weights"]["license"] == "Apache-2.0"
    assert bundle["preprocessing"] == graph["preprocessing"]
    assert graph["outputs"] == ["features", "logits", "novelty", "probabilities"]
    text = do("inspect", "run").out
    titles = [line for line in text.splitlines() if not line.startswith(" ") and line]
    assert titles == ["Bundle", "Data", "Network", "Head", "Training", "Validation (10 images)", "Exports"]
    matrix = text.split("predicted class):\n")[1].splitlines()[:5]
    assert matrix[0].split() == [*DIGITS, "recall"]
    assert [[int(cell) for cell in line.split()[1:-1]] for line in matrix[1:]] == bundle["metrics"]["confusion"]
    assert max(map(len, text.splitlines())) < 400
    assert do("inspect", story.model).out.splitlines()[0] == "Graph"


def test_plugins_lists_what_is_there_and_fits_a_screen(do):
    facts = do("plugins", "--json").json["plugins"]
    standard = next(plugin for plugin in facts if plugin["distribution"] == "tlkit")
    assert standard["state"] == "ok"
    components = {(component["kind"], component["name"]): component for component in standard["components"]}
    assert {("backbone", "efficientnet-lite0"), ("strategy", "frozen"), ("target", "onnx")} <= components.keys()
    assert {name for kind, name in components if kind == "head"} >= {
        "logistic",
        "svm",
        "rbf-svm",
        "knn",
        "nearest-mean",
        "mlp",
    }
    assert {name for kind, name in components if kind == "detector"} >= {"energy", "mahalanobis"}
    plain = do("plugins").out
    assert all(name in plain for _, name in components)
    assert plain.count("\n") <= 7 * len(facts)


def test_plugins_show_tells_the_options_of_a_component(do):
    (svm,) = do("plugins", "show", "svm", "--json").json["components"]
    pca = next(option for option in svm["options"] if option["name"] == "pca")
    assert pca.keys() == {"name", "type", "default", "local", "choices", "limits", "help"}
    plain = do("plugins", "show", "svm").out
    assert plain.startswith("head svm (tlkit ")
    assert all(option["help"] in plain and option["name"] in plain for option in svm["options"])
    assert "license Apache-2.0" in do("plugins", "show", "efficientnet-lite0").out
    both = do("plugins", "show", "efficientnet-lite[01]", "--kind", "backbone", "--json").json["components"]
    assert [each["preprocessing"]["size"] for each in both] == [224, 240]


def test_plugins_show_of_an_unknown_name(tlkit):
    said = tlkit("plugins", "show", "logistics")
    assert (said.code, said.out) == (2, "")
    assert "did you mean 'logistic'?" in said.err


@pytest.mark.parametrize(
    "line",
    ["verify run", "embed run a.jpg -o {tmp}/f.npy", "eval run test", "inspect run", "plugins", "plugins show svm"],
)
def test_with_json_stdout_is_one_object_and_the_rest_is_on_stderr(do, tmp_path, line):
    finished = do(*shlex.split(line.format(tmp=tmp_path)), "--json")
    assert isinstance(finished.json, dict)
    assert finished.err.count("\n") == 2
