"""Worker: `predict_proba` of a saved rung, or of the model as it is (zero-shot).

Asked for `folder` it loads the rung there, as `llabel predict` does, with `changes` to its
settings; else it asks the base model with `settings`, and may be told not to reuse what prompts
begin with (`reuse` false).
"""

from pathlib import Path

import numpy as np

from llabel.ladder.llm import LLMRung
from llabel.ladder.prompted import PromptedRung
from llabel.settings import LLMSettings
from llabel.task import Split, Task
from protocol import Job, Link, job, read_rows, serve


def rung_for(asked: Job, rows: list[dict]) -> LLMRung | PromptedRung:
    """Loaded and ready to predict."""
    if "folder" in asked:
        return LLMRung.load(Path(asked["folder"]), **asked["changes"])
    few = rows[:16]  # only its prior, which is not used, depends on them
    split = Split(
        ids=tuple(f"train:{number + 1}" for number in range(len(few))),
        texts=tuple(tuple(row["fields"].values()) for row in few),
        y=np.array([row["label"] for row in few], dtype=np.int64),
    )
    classes = tuple(asked["classes"])
    task = Task("boolq", tuple(rows[0]["fields"]), classes, split, split, split, fingerprint="")
    settings = LLMSettings(**asked["settings"])
    rung = PromptedRung(settings, few_shot=False, calibrated=False).fit(task)
    rung.reader_.reuse = asked.get("reuse", True)
    return rung


def main() -> None:
    link, asked = Link(), job()
    rows = read_rows(asked["rows"])
    texts = [tuple(row["fields"].values()) for row in rows]
    labels = np.array([row["label"] for row in rows])
    tokens = sum(row["tokens"] for row in rows)
    rung = rung_for(asked, rows)

    def lap() -> dict:
        proba = rung.predict_proba(texts)
        right = int((proba.argmax(axis=1) == labels).sum())
        return {"rows": len(texts), "tokens": tokens, "right": right}

    lap()
    first = rung.predict_proba(texts[:8]).argmax(axis=1).tolist()
    serve(link, lap, warm_laps=1, precision=rung.precision, first_labels=first)


if __name__ == "__main__":
    main()
