"""Short fingerprints of networks, so that a state or a ledger can tell which one made it."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def model_identity(model: Any) -> str:
    """A short fingerprint of a diffusers network: its config, dtype, and the first values of every weight tensor.

    Where the network was loaded from is no part of it, though diffusers keeps that in the configuration.
    """
    config = {key: value for key, value in model.config.items() if not key.startswith("_")}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    digest.update(_weights(model))
    return f"{type(model).__name__}:{digest.hexdigest()[:16]}"


def text_identity(pipeline: Any) -> str:
    """A short fingerprint of what turns prompts into embeddings in a diffusers pipeline: text encoders, tokenizers.

    Two pipelines of one network differ in it where one of them was loaded without T5, say. A pipeline whose text
    encoders were dropped remembers it.
    """
    if (known := getattr(pipeline, "dropped_text_identity", None)) is not None:
        return known
    digest = hashlib.sha256(str(pipeline.config.get("force_zeros_for_empty_prompt")).encode())
    for name, part in sorted(pipeline.components.items()):
        if part is None or not name.startswith(("text_encoder", "tokenizer")):
            continue
        digest.update(f"{name} {type(part).__name__}".encode())
        if name.startswith("tokenizer"):
            digest.update(f"{len(part)} {part.model_max_length}".encode())
        else:
            digest.update(_weights(part))
    return digest.hexdigest()[:16]


def _weights(model: Any) -> bytes:
    """Name, shape, dtype and first values of every weight tensor."""
    told = []
    for name, parameter in model.state_dict().items():
        told.append(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        told.append(parameter.flatten()[:64].cpu().float().numpy().tobytes())
    return b"".join(told)
