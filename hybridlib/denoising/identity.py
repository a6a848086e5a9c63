"""Short fingerprints of networks, so that a state or a ledger can tell which one made it."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def model_identity(model: Any) -> str:
    """A short fingerprint of a diffusers network: its config, dtype, and the first values of every weight tensor."""
    digest = hashlib.sha256(json.dumps(dict(model.config), sort_keys=True, default=str).encode())
    for name, parameter in model.state_dict().items():
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        digest.update(parameter.flatten()[:64].cpu().float().numpy().tobytes())
    return f"{type(model).__name__}:{digest.hexdigest()[:16]}"
