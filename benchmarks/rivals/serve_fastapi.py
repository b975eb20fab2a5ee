"""A plain server: FastAPI and onnxruntime, as tutorials write it. python serve_fastapi.py model.onnx PORT."""

from __future__ import annotations

import json
import sys
from io import BytesIO

import numpy as np
import onnxruntime
import uvicorn
from fastapi import Body, FastAPI
from PIL import Image

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
facts = session.get_modelmeta().custom_metadata_map
labels, size = json.loads(facts["tlkit.labels"]), json.loads(facts["tlkit.preprocessing"])["size"]
app = FastAPI()


@app.post("/predict")
def predict(body: bytes = Body(media_type="image/jpeg")) -> dict[str, object]:
    image = Image.open(BytesIO(body)).convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    row = session.run(["probabilities"], {"images": np.asarray(image)[None]})[0][0]
    return {"label": labels[int(row.argmax())], "probability": float(row.max())}


uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="error")
