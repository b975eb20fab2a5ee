"""The page in a real browser: a picture is dropped, its label is shown, and nothing is on the console."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html import unescape
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from tests.kit.serving import open_graph, serving
from tlkit.serving import page

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DROP = """
<pre id="seen"></pre><script>
const faults = [];
addEventListener("error", event => faults.push(event.message));
addEventListener("securitypolicyviolation", event => faults.push(event.blockedURI));
console.error = (...words) => faults.push(words.join(" "));
addEventListener("load", () => {
  const bytes = Uint8Array.from(atob("PICTURE"), each => each.charCodeAt(0)), data = new DataTransfer();
  data.items.add(new File([bytes], "a.png", {type: "image/png"}));
  document.getElementById("drop").dispatchEvent(new DragEvent("drop", {dataTransfer: data, cancelable: true}));
  const look = setInterval(() => {
    const said = document.getElementById("said").textContent;
    const evidence = document.getElementById("evidence").naturalWidth;
    if (!said || said === "…" || !evidence) return;
    clearInterval(look);
    document.getElementById("seen").textContent = JSON.stringify({said, faults, evidence,
      labels: [...document.querySelectorAll("#labels td:first-child")].map(each => each.textContent),
      shown: document.getElementById("picture").naturalWidth});
  }, 20);
});
</script>"""


def test_it_needs_no_other_file_and_its_policy_allows_what_it_does():
    for text in (page.drop(), page.docs()):
        assert not re.search(r"https?://|@import|<script src", text)
        assert "default-src 'none'; img-src data: blob:; connect-src 'self'" in text


@pytest.mark.slow
def test_a_dropped_picture_is_labelled(tiny_run, tmp_path):
    if BROWSER is None:
        pytest.skip("needs chromium (Debian: apt-get install chromium)")
    picture = min((tiny_run / "golden").glob("*.png"))
    script = DROP.replace("PICTURE", base64.b64encode(picture.read_bytes()).decode())
    with serving([tiny_run]) as server, open_graph(tiny_run, "model") as model:
        expected = model.predict([picture], topk=3)[0]
        front = in_front(server.port, script)
        browser = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        command = [*browser, "--virtual-time-budget=10000", "--dump-dom", f"http://127.0.0.1:{front}/"]
        dumped = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    seen = json.loads(unescape(re.search(r'<pre id="seen">(.*?)</pre>', dumped.stdout, re.DOTALL)[1]))
    assert seen["faults"] == []
    assert seen["labels"] == list(expected.labels)
    assert seen["said"] == f"run: {expected.label}"
    assert seen["shown"] > 0
    assert seen["evidence"] == 32


def in_front(port, script):
    """A server in front of that at a port, which adds a script to the page; returns its own port."""
    inside = re.search(r"<script>(.*)</script>", script, re.DOTALL)[1]
    inside = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()

    class Front(BaseHTTPRequestHandler):
        def relay(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            connection = HTTPConnection("127.0.0.1", port, timeout=20)
            connection.request(self.command, self.path, body)
            answer = connection.getresponse()
            content = answer.read()
            if self.path == "/":
                content = content.replace(b"script-src ", f"script-src 'sha256-{inside}' ".encode())
                content = content.replace(b"</body>", script.encode() + b"</body>")
            self.send_response(answer.status)
            for name in ("Content-Type", "Content-Security-Policy"):
                if answer.getheader(name):
                    self.send_header(name, answer.getheader(name))
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = relay  # noqa: N815 - names of the base class

        def log_message(self, *_):
            pass

    front = ThreadingHTTPServer(("127.0.0.1", 0), Front)
    Thread(target=front.serve_forever, daemon=True).start()
    return front.server_address[1]
