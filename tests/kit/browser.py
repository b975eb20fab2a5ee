"""A page in headless Chromium that imports `docs/browser.js` and onnxruntime-web, and posts what it finds."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PACKAGE = "onnxruntime-web"
PATIENCE = 300  # seconds
TYPES = {".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm", ".html": "text/html"}
PAGE = """<!doctype html><meta charset="utf-8"><script type="module">
import * as ort from "./ort.wasm.min.mjs";
import * as tlkit from "./browser.js";
ort.env.wasm.numThreads = 1;
const fetched = async name => (await fetch(name)).arrayBuffer();
let found;
try {
  found = await (async () => { SCRIPT })();
} catch (error) {
  found = {error: `${error.message} ${error.stack}`};
}
await fetch("found", {method: "POST", body: JSON.stringify(found)});
</script>"""


def installed(folder: Path) -> Path | str:
    """The files of onnxruntime-web, installed in `folder`, or the reason why there are none."""
    if BROWSER is None or shutil.which("npm") is None:
        return "needs chromium and npm (Debian: apt-get install chromium npm)"
    command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    files = folder / "node_modules" / PACKAGE / "dist"
    return files if files.is_dir() else f"{PACKAGE} can't be installed: {done.stderr.strip()[-200:]}"


def seen(runtime: Path, files: Mapping[str, bytes], script: str) -> Any:
    """Return what a script finds; it has `ort`, `tlkit`, and `fetched(name)`, the bytes of one of `files`."""
    answers: Queue[Any] = Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.lstrip("/") or "index.html"
            if name == "index.html":
                content = PAGE.replace("SCRIPT", script).encode()
            elif name == "browser.js":
                content = (ROOT / "docs" / name).read_bytes()
            elif name in files:
                content = files[name]
            elif (runtime / name).is_file():
                content = (runtime / name).read_bytes()
            else:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Type", TYPES.get(Path(name).suffix, "application/octet-stream"))
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_POST(self) -> None:
            answers.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    assert BROWSER is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            f"--user-data-dir={profile}",
        ]
        address = f"http://127.0.0.1:{server.server_port}/"
        process = subprocess.Popen(
            [BROWSER, *options, "--remote-debugging-port=0", address],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            return answers.get(timeout=PATIENCE)
        except Empty:
            return {"error": f"no answer within {PATIENCE} s"}
        finally:
            process.terminate()
            process.wait()
            server.shutdown()
            server.server_close()
