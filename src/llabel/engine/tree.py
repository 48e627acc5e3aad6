"""The inner tokens of a label trie, laid out for one attention pass."""

from collections.abc import Sequence

import torch


class Tree:
    """The trie's inner tokens in one row, each after its parent.

    Each token sees the prompt and its own ancestors, so that all branchings are read at once
    ("tree attention", Miao et al. 2024, SpecInfer, section 4.2).

    Attributes:
        tokens: (tree,) token ids; empty where the only branching is the answer position.
        depths: (tree,) how far behind the prompt's last token + 1 each stands.
        ancestors: (tree, tree) which of them each sees, itself included.
        read_at: (n_branchings,) the token at which each branching is read; None is the prompt's
            last token.
    """

    def __init__(self, prefixes: Sequence[tuple[int, ...]], device: torch.device) -> None:
        """`prefixes`: of all branchings, in their order."""
        nodes = sorted({p[:n] for p in prefixes for n in range(1, len(p) + 1)}, key=len)
        place = {node: i for i, node in enumerate(nodes)}
        last, depth = [node[-1] for node in nodes], [len(node) - 1 for node in nodes]
        self.tokens = torch.tensor(last, dtype=torch.long, device=device)
        self.depths = torch.tensor(depth, dtype=torch.long, device=device)
        self.ancestors = torch.zeros(len(nodes), len(nodes), dtype=torch.bool, device=device)
        for node, i in place.items():
            for length in range(1, len(node) + 1):
                self.ancestors[i, place[node[:length]]] = True
        self.read_at = [place.get(prefix) for prefix in prefixes]
