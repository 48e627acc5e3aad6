"""Worker: fine-tune for a few steps and save the rung, for the predictions to load."""

from pathlib import Path

from train_ours import task_of

from llabel.ladder.llm import LLMRung
from llabel.settings import LLMSettings
from protocol import Link, job, read_rows


def main() -> None:
    link, asked = Link(), job()
    rows = read_rows(asked["rows"])
    rung = LLMRung(LLMSettings(**asked["settings"])).fit(task_of(rows, rows[:2]))
    rung.save(Path(asked["out"]))
    link.say(ready=True)
    link.wait()


if __name__ == "__main__":
    main()
