"""Worker: TRL's SFTTrainer with PEFT, as its documentation shows it for prompt and completion.

The loss is over the completion alone, which is the default for such data. Other than the defaults
are: float32 (the default would be bfloat16 autocast, for which most CPUs are slower), rows in
their order, no reports and no checkpoints. `gradient_checkpointing` is True by default in TRL 1.16
and as it was asked for here.
"""

import tempfile

from protocol import Link, StepGate, job, read_rows


def main() -> None:
    link, asked = Link(), job()
    rows = read_rows(asked["rows"])
    allocator = None
    if asked.get("keep_freed_memory"):
        from llabel.engine.allocator import keep_freed_memory

        allocator = keep_freed_memory()

    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    gate = StepGate(link, [row["tokens"] for row in rows], asked)

    class Stop(TrainerCallback):
        def on_step_end(self, *args: object, **kwargs: object) -> None:
            gate.step_done()

    checkpointing = asked.get("gradient_checkpointing")
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder,
            model_init_kwargs={"dtype": "float32"},
            bf16=False,
            per_device_train_batch_size=asked["batch_size"],
            max_length=asked["max_length"],
            learning_rate=asked["learning_rate"],
            lr_scheduler_type="constant",
            num_train_epochs=1,
            train_sampling_strategy="sequential",
            seed=asked["seed"],
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            **({} if checkpointing is None else {"gradient_checkpointing": checkpointing}),
        )
        trainer = SFTTrainer(
            model=asked["model"],
            args=config,
            train_dataset=Dataset.from_list(
                [{"prompt": row["prompt"], "completion": row["completion"]} for row in rows]
            ),
            peft_config=LoraConfig(
                r=asked["r"],
                lora_alpha=asked["lora_alpha"],
                target_modules="all-linear",
                task_type="CAUSAL_LM",
            ),
            callbacks=[Stop()],
        )
        gate.facts = {
            "gradient_checkpointing": config.gradient_checkpointing,
            "optimiser": str(config.optim),
            "dtype": str(next(trainer.model.parameters()).dtype),
            "keep_freed_memory": allocator,
            "row_tokens": sum(len(row["input_ids"]) for row in trainer.train_dataset),
        }
        trainer.train()
    link.leave()


if __name__ == "__main__":
    main()
