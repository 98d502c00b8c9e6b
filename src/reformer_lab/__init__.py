"""reformer_lab: the Reformer (Kitaev, Kaiser and Levskaya, ICLR 2020), exact and reproducible.

The names below are loaded when they are first used, so that ``import reformer_lab`` does not import torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reformer_lab.models.config import ReformerConfig
    from reformer_lab.models.language_model import ReformerLM
    from reformer_lab.ops.lsh_attention import lsh_attention

__version__ = "0.1.0"
__all__ = ["ReformerConfig", "ReformerLM", "__version__", "lsh_attention"]

_HOMES = {
    "ReformerConfig": "reformer_lab.models.config",
    "ReformerLM": "reformer_lab.models.language_model",
    "lsh_attention": "reformer_lab.ops.lsh_attention",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'reformer_lab' has no attribute {name!r}")
