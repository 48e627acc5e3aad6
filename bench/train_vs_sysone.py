"""train-vs-sysone: rows/s of LoRA training beside sysone 0.5.2.

    python bench/train_vs_sysone.py [--quick]

The same work as train_vs_trl.py. sysone has `tuning="lora"`, r 16 and alpha 32 on all linear layers
of all layers, and BoolQ as a task of one choice question; what differs is told in
workers/train_sysone.py. It runs without gradient checkpointing, which is faster, and for one lap
with it, its default for this work; the faster one counts. About 20 minutes on two cores.
"""

from driver import measure_pairs
from record import compared, surroundings, table, write
from work import ours_training, peer_training, plan_from, write_rows


def main() -> None:
    plan = plan_from(__doc__)
    around = surroundings()
    path, _ = write_rows("train", "train", plan.training_rows)
    sysone = peer_training(plan, path, "sysone", 'SystemOneModel(tuning="lora"), float32')
    plain = peer_training(
        plan, path, "sysone-no-checkpointing", "the same without checkpointing",
        gradient_checkpointing=False,
    )  # fmt: skip
    pairs = measure_pairs(ours_training(plan, path), [plain, sysone], plan.repeats)
    name, what = "train-vs-sysone", "training rows/s, llabel / sysone"
    write(plan.results, compared(name, what, pairs, {"at_least": 5}), around)
    print(table(plan.results))


if __name__ == "__main__":
    main()
