"""TLS and a bearer token, over both protocols."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from http.client import HTTPSConnection
from pathlib import Path

import pytest

from tests.kit.serving import serving

TOKEN = "open sesame"  # noqa: S105 - of a test


@pytest.fixture
def pair(tmp_path):
    """The files of a certificate for this machine, and of its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    names = ("ssl_certfile", "ssl_keyfile")
    files = {name: str(tmp_path / f"{name}.pem") for name in names}
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    places = ["-out", files["ssl_certfile"], "-keyout", files["ssl_keyfile"]]
    subprocess.run(["openssl", "req", "-x509", *kind, *name, *places], check=True, capture_output=True)
    return files


def test_both_protocols_over_tls_with_a_token(tiny_run, pair):
    grpc = pytest.importorskip("grpc", reason="needs tlkit[serve-grpc]")
    context = ssl.create_default_context(cafile=pair["ssl_certfile"])
    sent = f"Bearer {TOKEN}"
    with serving([tiny_run], tls=pair, token=TOKEN, grpc_port=0) as server:
        for headers, status in (({}, 401), ({"Authorization": sent}, 200)):
            connection = HTTPSConnection("localhost", server.port, timeout=20, context=context)
            connection.request("GET", "/v2/models/run", headers=headers)
            assert connection.getresponse().status == status
            connection.close()
        trusted = grpc.ssl_channel_credentials(Path(pair["ssl_certfile"]).read_bytes())
        with grpc.secure_channel(f"localhost:{server.grpc_port}", trusted) as channel:
            call = channel.unary_unary("/inference.GRPCInferenceService/ServerMetadata")
            assert b"tlkit" in call(b"", metadata=[("authorization", sent)], timeout=20)
            with pytest.raises(grpc.RpcError) as caught:
                call(b"", timeout=20)
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
