"""Label one image with a model that tlkit exported, and nothing but ONNX Runtime, Pillow and NumPy.

python bare_predict.py model.onnx a.jpg
"""

from __future__ import annotations

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
facts = session.get_modelmeta().custom_metadata_map
labels, preprocessing = json.loads(facts["tlkit.labels"]), json.loads(facts["tlkit.preprocessing"])

picture = ImageOps.exif_transpose(Image.open(sys.argv[2])).convert("RGB")
if preprocessing["crop_mode"] != "center":
    sys.exit(f"{sys.argv[1]}: crop mode {preprocessing['crop_mode']}; the script of the README knows all of them")
side = preprocessing["crop_pct"] * min(picture.size)
left, top = (picture.width - side) / 2, (picture.height - side) / 2
size, resampling = (
    (preprocessing["size"], preprocessing["size"]),
    Image.Resampling[preprocessing["interpolation"].upper()],
)
image = np.asarray(picture.resize(size, resampling, box=(left, top, left + side, top + side)))

probabilities = session.run(["probabilities"], {"images": image[None]})[0][0]
print(labels[probabilities.argmax()], f"{probabilities.max():.4f}", sep="\t")
