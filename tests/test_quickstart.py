"""The notebook: each cell is executed in order, as Jupyter does, and what ends a cell is shown."""

from __future__ import annotations

import json

# A kernel in few words: the names of the cells before, and the value of a last expression shown.
KERNEL = """
import ast, json, sys
names = {"__name__": "__main__"}
for cell in json.load(open(sys.argv[1], encoding="utf-8"))["cells"]:
    if cell["cell_type"] != "code":
        continue
    body = ast.parse("".join(cell["source"])).body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), cell["id"], "exec"), names)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), cell["id"], "eval"), names)
        if value is not None:
            print(repr(value))
        if hasattr(value, "_repr_html_"):
            html = value._repr_html_()
            assert html.count("<div") == html.count("</div>") > 0
            print("shown as HTML")
"""


def test_from_a_folder_to_a_verified_int8_model_with_the_api_alone(checkout, forks, story, place):
    notebook = checkout / "docs/quickstart.ipynb"
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    assert sum(cell["cell_type"] == "code" for cell in cells) >= 7
    assert all(not cell.get("outputs") for cell in cells)  # what it shows is what it computes here
    finished = forks.run(["-c", KERNEL, notebook], cwd=place, env=story.env)
    assert finished.code == 0, finished.err
    for part in ("shown as HTML", "strategy frozen", "int8", "(20, 1280)", "accuracy", "Network", "Exports"):
        assert part in finished.out
    assert (place / "run/onnx/int8/model.onnx").exists()
