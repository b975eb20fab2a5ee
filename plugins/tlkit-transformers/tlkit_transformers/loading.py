"""Weights of a local folder, of the hub's cache or of the hub, and what goes with them. No code of theirs is run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import nn
from transformers.utils import cached_file, logging

from tlkit.plugin.contract import Preprocessing, Weights
from tlkit.plugin.support import ArtifactError, ResourceError, UsageError, listed, read_weights, sha256
from tlkit_transformers import networks, processors

if TYPE_CHECKING:
    from tlkit_transformers.backbone import Transformers

WEIGHTS, CONFIG, PROCESSOR = "model.safetensors", "config.json", "preprocessor_config.json"
EXAMPLE = """give an object: {"hidden_size": 192}"""
# What a configuration says beside the structure of the trunk and what it computes.
BESIDE = {
    "_name_or_path", "architectures", "attn_implementation", "auto_map", "dtype", "torch_dtype", "id2label",
    "label2id", "num_labels", "initializer_factor", "initializer_range", "output_attentions",
    "output_hidden_states", "problem_type", "pooler_output_size", "pooler_act", "encoder_stride",
    "out_features", "out_indices", "stage_names", "apply_layernorm", "reshape_hidden_states", "return_dict",
    "transformers_version", "use_mask_token", "projection_dim", "chunk_size_feed_forward", "is_encoder_decoder",
    "drop_path_rate", "hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout",
    "classifier_dropout", "pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale", "model_type", "mask_ratio"
}  # fmt: skip


def parsed(backbone: Transformers) -> dict[str, Any]:
    """Return the option `config`, parsed. Raises UsageError."""
    try:
        changes = json.loads(backbone.config or "{}")
    except (ValueError, RecursionError) as error:
        raise UsageError(f"backbone.config is not JSON: {error}", do=EXAMPLE) from error
    if not isinstance(changes, dict):
        raise UsageError("backbone.config is not a JSON object", do=EXAMPLE)
    return changes


def preprocessing(backbone: Transformers) -> Preprocessing:
    """Return the preprocessing of the folder's image processor, or else of the published one."""
    given: Mapping[str, Any] = backbone.published.processor
    if backbone.checkpoint is not None and (backbone.checkpoint / PROCESSOR).is_file():
        given = _json(backbone.checkpoint / PROCESSOR)
    found = processors.preprocessing(given, f"backbone {backbone.name!r}")
    return found if backbone.size is None else replace(found, size=backbone.size)


def weights(backbone: Transformers) -> Weights:
    """Return the folder's weights file, or the repository on the hub."""
    if backbone.checkpoint is None:
        entry = backbone.published
        return Weights(f"hf-hub:{backbone.repository}", entry.license, license_class=entry.license_class)
    file = _existing(backbone.checkpoint)
    return Weights(f"the local folder {backbone.checkpoint.name}", "LicenseRef-unknown", sha256(file), "unknown")


def pretrained(backbone: Transformers) -> nn.Module:
    """Return the network with the weights of the folder, or of the hub. Raises UsageError and ArtifactError."""
    if backbone.checkpoint is not None:
        _existing(backbone.checkpoint)
    _compare(backbone, _json(_file(backbone, CONFIG)))
    model = networks.built(backbone)
    given = read_weights(_file(backbone, WEIGHTS))
    state, prefix = model.state_dict(), getattr(model, "base_model_prefix", "")
    found = {}
    for name, own in state.items():
        names = (name, f"{prefix}.{name}", f"vision_model.{name}", name.removeprefix("vision_model."))
        tensor = next((given[each] for each in names if each in given), None)
        if tensor is not None and tensor.shape == own.shape:
            found[name] = tensor.to(own.dtype)
    if len(found) < len(state):
        return _renamed(backbone)
    model.load_state_dict(found)
    return model.eval()


def _renamed(backbone: Transformers) -> nn.Module:
    """Load weights whose names transformers changes when it reads them. Raises ArtifactError if some are missing."""
    kind = networks.family(backbone)
    folder = _file(backbone, WEIGHTS).parent
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        model, told = getattr(transformers, kind.model).from_pretrained(
            folder,
            config=networks.configuration(backbone),
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **dict(kind.arguments),
        )
    except Exception as error:  # of safetensors, of huggingface_hub, and of shapes that differ
        line = str(error).strip().partition("\n")[0]
        raise ArtifactError(f"not the weights of {backbone.name}: {line}", file=folder / WEIGHTS) from error
    finally:
        logging.set_verbosity(verbosity)
    if missing := sorted(name for name in told["missing_keys"] if not name.endswith(networks.MASK)):
        raise ArtifactError(f"not the weights of {backbone.name}: {listed(missing)} missing", file=folder / WEIGHTS)
    return networks.without_mask_token(model).eval()


def classifier(backbone: Transformers) -> nn.Module | None:
    """Return the layer from features to logits, if the weights have one, and one alone."""
    given = read_weights(_file(backbone, WEIGHTS))
    names = [name for name in ("classifier.weight", "classifier.1.weight") if name in given]
    if backbone.pooling != "own" or len(names) != 1 or given[names[0]].ndim != 2:
        return None
    weight = given[names[0]].float()
    size = backbone.preprocessing.size
    with torch.inference_mode():
        width = networks.features(backbone, pretrained=False)(torch.zeros(1, 3, size, size)).shape[1]
    if weight.shape[1] != width:  # such as DINOv2's, which takes the class token and the mean
        return None
    layer = nn.Linear(width, len(weight)).eval()
    layer.load_state_dict({"weight": weight, "bias": given[names[0].replace("weight", "bias")].float()})
    return layer


def _compare(backbone: Transformers, given: Mapping[str, Any]) -> None:
    """Refuse weights for a network of another structure, before they are read. Raises UsageError."""
    if "auto_map" in given:
        raise UsageError(f"{backbone.name}: its network is code of the repository, which tlkit never runs")
    given = given.get("vision_config", given)
    own = networks.configuration(backbone).to_dict()
    kinds = {given.get("model_type"), own["model_type"]}
    if len(kinds - {None}) > 1 and {str(kind).removesuffix("_vision_model") for kind in kinds} != {own["model_type"]}:
        raise UsageError(f"{backbone.name}: the weights are those of a {given['model_type']}, not {own['model_type']}")
    default = type(networks.configuration(backbone))().to_dict()
    other = {
        key: given.get(key, default[key])
        for key, value in own.items()
        if key not in BESIDE and key in default and given.get(key, default[key]) != value
    }
    if other:
        raise UsageError(
            f"{backbone.name}: the configuration beside the weights differs: {json.dumps(other)}",
            do=f"describe the network: --set 'backbone.config={json.dumps({**parsed(backbone), **other})}'",
        )


def _file(backbone: Transformers, name: str) -> Path:
    """Return a file of the folder, of the hub's cache, or of the hub. Raises ResourceError."""
    if backbone.checkpoint is not None:
        return backbone.checkpoint / name
    for cached in (True, False):
        try:
            found = cached_file(backbone.repository, name, local_files_only=cached)
        except Exception as error:  # huggingface_hub and what is below it have many
            if not cached:
                line = str(error).strip().partition("\n")[0]
                raise ResourceError(
                    f"{name} of {backbone.repository} is not in the hub's cache, and can't be downloaded: {line}",
                    do="connect to the internet, or give a folder: --set backbone.checkpoint=FOLDER",
                ) from error
        else:
            if found is not None:
                return Path(found)
    raise ResourceError(f"{backbone.repository} has no {name}", do="give a folder: --set backbone.checkpoint=FOLDER")


def _existing(folder: Path) -> Path:
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise UsageError(f"the folder has no {name}", file=folder, do="save a network with save_pretrained(FOLDER)")
    return folder / WEIGHTS


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"can't be read as JSON: {error}", file=file) from error
    if not isinstance(content, dict):
        raise UsageError("it holds no JSON object", file=file)
    return content
