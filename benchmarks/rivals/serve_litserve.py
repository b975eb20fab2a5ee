"""LitServe with batches of eight; pictures come as base64 in JSON. python serve_litserve.py model.onnx PORT."""

from __future__ import annotations

import base64
import json
import sys
from io import BytesIO
from typing import Any

import litserve
import numpy as np
import onnxruntime
from PIL import Image


class Classifier(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
        facts = self.session.get_modelmeta().custom_metadata_map
        self.labels = json.loads(facts["tlkit.labels"])
        self.size = json.loads(facts["tlkit.preprocessing"])["size"]

    def decode_request(self, request: dict[str, str]) -> Any:
        image = Image.open(BytesIO(base64.b64decode(request["image"]))).convert("RGB")
        return np.asarray(image.resize((self.size, self.size), Image.Resampling.BICUBIC))

    def batch(self, inputs: list[Any]) -> Any:
        return np.stack(inputs)

    def predict(self, batch: Any) -> Any:
        return self.session.run(["probabilities"], {"images": batch})[0]

    def unbatch(self, output: Any) -> list[Any]:
        return list(output)

    def encode_response(self, output: Any) -> dict[str, object]:
        return {"label": self.labels[int(output.argmax())], "probability": float(output.max())}


if __name__ == "__main__":
    api = Classifier(max_batch_size=8, batch_timeout=0.005)
    litserve.LitServer(api, accelerator="cpu").run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False)
