"""One run of one rung."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Interval

from llabel.settings.kinds import Help, RungName, TrackerName


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """What is trained, and what the run folder keeps."""

    rung: Annotated[RungName, Help("The system to train.")] = "llm-lora"
    decode: Annotated[
        Literal["labels", "free"],
        Help(
            "How test rows are answered: the most probable label (labels), or whatever the model "
            "writes, where an answer that is no label is `unknown` and wrong (free)."
        ),
    ] = "labels"
    calibrate: Annotated[
        Literal["temperature"] | None,
        Help(
            "Divide the logarithms of all probabilities by one number, the temperature, that makes "
            "the log loss on validation least; the most probable labels stay."
        ),
    ] = None
    abstain_below: Annotated[
        float | None,
        Interval(gt=0, lt=1),
        Help("Answer `abstain` where no label is at least so probable."),
    ] = None
    target_precision: Annotated[
        float | None,
        Interval(gt=0, lt=1),
        Help(
            "Answer `abstain` below the smallest probability from which on so large a share of "
            "answers is right, as 0.95; validation must show it with 95 % confidence."
        ),
    ] = None
    untested: Annotated[
        bool, Help("Leave the test part unread, as for one of many runs of which one is chosen.")
    ] = False
    no_texts: Annotated[
        bool,
        Help(
            "Keep the rows' texts out of the run folder: vocabularies stay, and a few-shot rung "
            "without its examples cannot predict."
        ),
    ] = False
    checkpoint_minutes: Annotated[
        float, Gt(0), Help("Save the training so often; the same command goes on from there.")
    ] = 1.0
    checkpoint_steps: Annotated[int | None, Ge(1), Help("Save it after so many steps, too.")] = None
    track: Annotated[
        TrackerName | None,
        Help(
            "Log losses and scores to this tracker, too. Nothing leaves this machine: wandb is "
            "offline unless you are logged in, mlflow and trackio go where their own environment "
            "variables say, else to local files."
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SimplerSettings:
    """What the rungs below the LLM start from."""

    encoder: Annotated[str, Help("Pre-trained encoder: built-in name, local folder or Hub id.")] = (
        "minilm-l6"
    )
    embeddings: Annotated[
        str, Help("Word vectors: built-in name, or a file in GloVe's text format.")
    ] = "glove-6b-50d"
