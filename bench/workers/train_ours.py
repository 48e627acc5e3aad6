"""Worker: `LLMRung.fit` on the rows in their order.

It may be told not to read once what the prompts of a micro-batch begin with (`reuse` false).
"""

import numpy as np

from llabel.engine.packed_reader import PackedReader
from llabel.engine.training import row_order
from llabel.events import Event, StepDone
from llabel.ladder.llm import LLMRung
from llabel.settings import LLMSettings
from llabel.task import Split, Task
from protocol import Link, StepGate, job, read_rows

BOOLQ = (False, True)


def split_of(rows: list[dict], name: str) -> Split:
    """Rows as a part of a task."""
    return Split(
        ids=tuple(f"{name}:{number + 1}" for number in range(len(rows))),
        texts=tuple(tuple(row["fields"].values()) for row in rows),
        y=np.array([row["label"] for row in rows], dtype=np.int64),
    )


def task_of(rows: list[dict], validation: list[dict], classes: tuple = BOOLQ) -> Task:
    """These rows, as they are; the classes are BoolQ's unless said otherwise."""
    fields = tuple(rows[0]["fields"])
    few = split_of(validation, "validation")
    train = split_of(rows, "train")
    return Task("boolq", fields, classes, train, few, few, fingerprint="")


def main() -> None:
    link, asked = Link(), job()
    rows = read_rows(asked["rows"])
    settings = LLMSettings(**asked["settings"])
    # The engine shuffles; the rows are laid out so that shuffled they stand in the file's order.
    placed = list(rows)
    for position, row in enumerate(row_order(len(rows), settings.seed, 0)):
        placed[row] = rows[position]
    tokens = [row["read"] for row in rows]
    if not asked.get("reuse", True):
        PackedReader.reads_start_once = False
    gate = StepGate(link, tokens, asked)

    def notify(event: Event) -> None:
        if isinstance(event, StepDone):
            first = (event.step - 1) * gate.batch_size
            expected = sum(tokens[first : first + gate.batch_size])
            if event.tokens != expected:
                raise RuntimeError(
                    f"step {event.step} read {event.tokens} tokens where the rows in their order "
                    f"have {expected}: the engine orders rows in another way than this worker "
                    "thinks; mend workers/train_ours.py"
                )
            gate.step_done()

    rung = LLMRung(settings)
    gate.facts = {"precision": rung.precision, "settings": asked["settings"]}
    classes = tuple(asked.get("classes", BOOLQ))
    rung.fit(task_of(placed, rows[:2], classes), notify=notify)
    link.leave()


if __name__ == "__main__":
    main()
