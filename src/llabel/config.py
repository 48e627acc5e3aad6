"""One run's settings as a whole: from the command line or YAML, checked, to run.json."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from llabel.settings import DataSettings, LLMSettings, RunSettings


@dataclass(frozen=True, slots=True)
class RunConfig:
    """Everything that decides a run's result.

    Attributes:
        source: the data: file, folder, built-in name or Hub id.
        data, run, llm: the settings, by room.
    """

    source: str
    data: DataSettings
    run: RunSettings
    llm: LLMSettings

    def flat(self) -> dict[str, Any]:
        """One level of names, as in YAML and run.json; `data` is the source."""
        return {"data": self.source, **asdict(self.run), **asdict(self.data), **asdict(self.llm)}

    @classmethod
    def from_flat(cls, values: Mapping[str, Any]) -> Self:
        """The reverse of `flat`, every value checked; names that are missing keep their default.

        Raises:
            InputError: unknown name, missing name, wrong type or out of range.
        """
        raise NotImplementedError
