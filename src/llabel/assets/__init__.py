"""A model or data set by name: built in, on disk, or on the Hugging Face Hub."""

from llabel.assets.catalogue import BUILT_IN, Asset
from llabel.assets.resolve import (
    AssetStatus,
    asset_status,
    cache_folder,
    fetch,
    is_hub_id,
    resolve_dataset,
    resolve_embeddings,
    resolve_encoder,
    resolve_model,
)
from llabel.assets.weights import own_vectors_digest, own_weights_digest, weights_digest
from llabel.assets.wheels import Progress

__all__ = [
    "BUILT_IN",
    "Asset",
    "AssetStatus",
    "Progress",
    "asset_status",
    "cache_folder",
    "fetch",
    "is_hub_id",
    "own_vectors_digest",
    "own_weights_digest",
    "resolve_dataset",
    "resolve_embeddings",
    "resolve_encoder",
    "resolve_model",
    "weights_digest",
]
