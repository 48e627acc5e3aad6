"""LoRA over a base that is rounded to 4 bits (Dettmers et al. 2023, arXiv 2305.14314)."""

from dataclasses import replace

from llabel.engine.training import Watch
from llabel.ladder.base_models import BaseModels
from llabel.ladder.llm import LLMRung
from llabel.settings import LLMSettings


class QLoRARung(LLMRung):
    """`LLMRung` with `base` nf4, unless `settings` say nf4-stored.

    `llabel compare` trains it when it is named: the built-in models were rounded to 4 bits once
    already, and on the CPU the same training twice costs twice the time.
    """

    name = "llm-qlora"

    def __init__(
        self, settings: LLMSettings, models: BaseModels | None = None, watch: Watch | None = None
    ) -> None:
        rounded = replace(settings, base="nf4") if settings.base == "auto" else settings
        super().__init__(rounded, models, watch)
