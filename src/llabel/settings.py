"""Every setting, once: its name, type, range, default and help.

The command line makes its options from these classes, `--config run.yaml` is checked against
them, `run.json` records them and `LLMClassifier` takes the same names.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias, get_args

from annotated_types import Ge, Gt, Interval

RungName: TypeAlias = Literal[
    "majority",
    "lookup",
    "bag-of-words",
    "word-embeddings",
    "rnn",
    "transformer",
    "encoder",
    "llm-zero-shot",
    "llm-zero-shot-calibrated",
    "llm-few-shot",
    "llm-few-shot-calibrated",
    "llm-lora",
    "llm-qlora",
]
"""The systems of the ladder, from cheap to dear."""


ClassWeight: TypeAlias = Literal["balanced"]
"""What a class counts in the loss, where not each row counts alike."""


RopeKind: TypeAlias = Literal["linear", "dynamic", "yarn", "llama3"]
"""How rotary positions may be stretched over longer texts."""


Long: TypeAlias = Literal["head", "tail", "middle", "chunks"]
"""What is kept of a text that does not fit."""


TrackerName: TypeAlias = Literal["tensorboard", "mlflow", "wandb", "trackio"]
"""Who may keep the course of trainings, too."""


@dataclass(frozen=True, slots=True)
class Help:
    """What `--help` says of a setting."""

    text: str


@dataclass(frozen=True, slots=True)
class Duration:
    """Marks a number of seconds that may be written as 90s, 10m or 1h."""


@dataclass(frozen=True, slots=True)
class Names:
    """Marks a text that may be several names, written as A,B or as a list."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings:
    """What is read, and how it is cut into parts."""

    text: Annotated[
        tuple[str, ...],
        Help(
            "Text columns, as A,B, in the prompt's order; "
            "one with a comma in its name as '\"A, or B\",C'."
        ),
    ]
    label: Annotated[
        str,
        Names(),
        Help("Label column: string, bool or int; several as A,B, for one model that answers all."),
    ]
    target: Annotated[
        str | None,
        Help("Of several label columns the one to learn alone; rows and splits stay those of all."),
    ] = None
    group: Annotated[
        str | None, Help("Rows that share this column's value stay on one side of every split.")
    ] = None
    split_column: Annotated[
        str | None, Help("Column that says train, validation or test for each row.")
    ] = None
    validation: Annotated[str | None, Help("A file of validation rows.")] = None
    test: Annotated[str | None, Help("A file of test rows.")] = None
    test_split: Annotated[str | None, Help("Which given part to hold as the test part.")] = None
    validation_size: Annotated[
        float, Interval(gt=0, lt=1), Help("Share of the training rows cut off for validation.")
    ] = 0.1
    test_size: Annotated[
        float, Interval(gt=0, lt=1), Help("Share of all rows cut off for the test.")
    ] = 0.2
    train_rows: Annotated[
        int | None, Ge(1), Help("Train on a sample of so many rows (see --sampling).")
    ] = None
    test_rows: Annotated[
        int | None, Ge(1), Help("Test on a sample of so many of the rows held out for it.")
    ] = None
    sampling: Annotated[
        Literal["stratified", "natural", "balanced"],
        Help(
            "How both samples are drawn: stratified keeps the shares of the classes, balanced "
            "makes them equal as far as there are rows, natural leaves them to chance."
        ),
    ] = "stratified"
    normalise_labels: Annotated[
        bool, Help("Treat labels that differ only by case or space as one.")
    ] = False
    drop_unlabelled: Annotated[
        bool, Help("Leave out rows without a label, in place of refusing the data.")
    ] = False
    map_labels: Annotated[
        str | None,
        Help(
            "YAML file of lines OLD: NEW that merge labels, or OLD: null that drop a label with "
            "its rows, before anything is cut."
        ),
    ] = None
    split_seed: Annotated[
        int | None,
        Interval(ge=0, lt=2**31),
        Help("Which rows are held out and sampled. Default: --seed."),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LLMSettings:
    """A fine-tuned language model, from the prompt to the optimiser."""

    model: Annotated[str, Help("Built-in name, local folder or Hub id of a causal LM.")] = (
        "smollm2-135m"
    )
    template: Annotated[
        str, Help("qa, alpaca, plain, chat (the model's own), or a file with {column} holes.")
    ] = "qa"
    instruction: Annotated[
        str | None, Help("What the template alpaca or chat asks for; {labels} is the label list.")
    ] = None
    system: Annotated[str | None, Help("What the system says first, with --template chat.")] = None
    label_words: Annotated[
        dict[str, str] | None, Help("What to answer for a label: LABEL=WORDS (repeatable).")
    ] = None
    max_seq_length: Annotated[
        int | None, Ge(8), Help("Most tokens of prompt and answer. Default: the model's context.")
    ] = None
    long: Annotated[
        Long,
        Help(
            "What is read of a text that is too long: its head, its tail, or both (middle: the "
            "middle is cut out); or all of it, piece by piece (chunks: the answer is the mean over "
            "the pieces, learned from is the first)."
        ),
    ] = "head"
    rope_scaling: Annotated[
        str | None,
        Help(
            "Read more than the model's context: linear, dynamic, yarn or llama3, and how many "
            "times as much, as yarn:4."
        ),
    ] = None
    r: Annotated[int, Ge(1), Help("Rank of the LoRA update.")] = 16
    lora_alpha: Annotated[float, Ge(0), Help("LoRA scaling is lora-alpha / r.")] = 32
    lora_dropout: Annotated[
        float, Interval(ge=0, lt=1), Help("Dropout on the inputs of LoRA's A.")
    ] = 0.0
    target_modules: Annotated[
        tuple[str, ...], Help("Linear layers to adapt, as q_proj,v_proj.")
    ] = ("all-linear",)
    use_rslora: Annotated[bool, Help("Scale by lora-alpha / √r instead.")] = False
    init_lora: Annotated[
        Literal["default", "loftq"],
        Help(
            "LoRA starts from nothing (default), or from the best rank-r approximation of what "
            "--base nf4 rounded off (loftq)."
        ),
    ] = "default"
    adapt_layers: Annotated[
        int | None,
        Ge(1),
        Help(
            "Adapt the last so many layers only: less to train, and on the packed engine what the "
            "layers below give is computed once for all epochs and trials, for as many rows as fit "
            "into 2 GiB (930,000 tokens at hidden size 576); for others once an epoch."
        ),
    ] = None
    loss: Annotated[
        Literal["answer", "sft", "all"],
        Help(
            "Cross-entropy over the labels at the answer position (answer), over the answer's "
            "tokens (sft), or over prompt and answer (all)."
        ),
    ] = "answer"
    class_weight: Annotated[
        ClassWeight | None,
        Help(
            "balanced: in the training loss every class counts alike, each row in inverse "
            "proportion to the rows of its class. The validation loss stays as it is."
        ),
    ] = None
    learning_rate: Annotated[float, Gt(0), Help("Peak learning rate of AdamW.")] = 5e-4
    schedule: Annotated[
        Literal["cosine", "linear", "constant"], Help("Learning rate after the warm-up.")
    ] = "cosine"
    warmup_ratio: Annotated[
        float, Interval(ge=0, le=1), Help("Share of the steps with a rising learning rate.")
    ] = 0.05
    warmup_steps: Annotated[
        int | None, Ge(0), Help("Steps with a rising learning rate, in place of a share.")
    ] = None
    epochs: Annotated[int, Ge(1), Help("Passes over the training rows, at most.")] = 3
    max_steps: Annotated[
        int | None, Ge(1), Help("Steps of the optimiser, in place of --epochs.")
    ] = None
    patience: Annotated[
        int | None,
        Ge(1),
        Help("Stop after so many epochs without a better validation loss; none: never."),
    ] = 1
    batch_size: Annotated[int, Ge(1), Help("Rows of one optimiser step.")] = 16
    optim: Annotated[
        Literal["adamw", "adamw_8bit", "paged_adamw_8bit"],
        Help(
            "AdamW in float32, or with its state in 8 bits by bitsandbytes (and, on a GPU, paged "
            "out where memory is short)."
        ),
    ] = "adamw"
    weight_decay: Annotated[float, Ge(0), Help("AdamW's decay.")] = 0.0
    adam_beta2: Annotated[
        float,
        Interval(ge=0, lt=1),
        Help(
            "How long AdamW remembers squared gradients (0.999 in most tools: for long trainings)."
        ),
    ] = 0.99
    max_grad_norm: Annotated[float, Gt(0), Help("Gradients are clipped to this norm.")] = 1.0
    token_budget: Annotated[
        int,
        Ge(1),
        Help("Most tokens of a micro-batch: bounds memory, not the result; a GPU likes more."),
    ] = 1024
    trials: Annotated[
        int,
        Ge(1),
        Help(
            "Learning rates tried on validation: --learning-rate × 1, 1/3, 3, 1/9 … "
            "(other rungs: their usual one, or C)."
        ),
    ] = 1
    budget: Annotated[
        float | None,
        Duration(),
        Gt(0),
        Help("Training time for all trials of a rung together, as 90s, 10m or 1h."),
    ] = None
    shots: Annotated[int, Ge(1), Help("Examples in a few-shot prompt, as far as they fit.")] = 8
    refit: Annotated[
        bool, Help("Choose epochs on validation, then train anew on train + validation, as long.")
    ] = False
    precision: Annotated[
        Literal["auto", "float32", "bfloat16", "int8"],
        Help(
            "Of the frozen weights. auto: bfloat16 on CUDA, float32 on the CPU. int8 is for the "
            "CPU, and runs there unless --device says otherwise."
        ),
    ] = "auto"
    base: Annotated[
        Literal["auto", "nf4", "nf4-stored"],
        Help(
            "The frozen linear layers: as the model has them (auto), or rounded to 4-bit NF4 as in "
            "QLoRA. A GPU keeps the 4 bits; the CPU unpacks them once (nf4: fast, no memory is "
            "saved) or for every product (nf4-stored: small, slower)."
        ),
    ] = "auto"
    double_quant: Annotated[
        bool, Help("With --base nf4: round the scales of the 4-bit numbers, too, to 8 bits.")
    ] = True
    compute_dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Help("What 4-bit numbers are unpacked to for products. auto: as --precision."),
    ] = "auto"
    engine: Annotated[
        Literal["auto", "plain"],
        Help(
            "auto: fused layers of our own, on the CPU, for models built like Llama, where there "
            "is a C++ compiler; else, and with plain, the layers of transformers."
        ),
    ] = "auto"
    compile: Annotated[
        bool,
        Help(
            "Fuse the layers of transformers with torch.compile: fast after a minute. On the CPU "
            "our own engine is faster, and does not run then."
        ),
    ] = False
    gradient_checkpointing: Annotated[
        bool,
        Help(
            "Compute each layer again in the backward pass instead of keeping what it made: far "
            "less memory for long rows, half as much work again, the same result."
        ),
    ] = False
    device: Annotated[str, Help("auto, cpu, cuda or cuda:N.")] = "auto"
    seed: Annotated[
        int, Interval(ge=0, lt=2**31), Help("Splits, row order, adapter initialisation, dropout.")
    ] = 0


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


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareSettings:
    """What a comparison asks beyond its runs."""

    rungs: Annotated[
        tuple[RungName, ...],
        Help("Systems to compare, as majority,encoder,llm-lora. Default: all but llm-qlora."),
    ] = tuple(name for name in get_args(RungName) if name != "llm-qlora")
    seeds: Annotated[
        int, Ge(1), Help("Train each rung with so many seeds; intervals and tests carry them.")
    ] = 1
    draws: Annotated[
        int,
        Ge(1),
        Help(
            "Do everything on so many random draws of the rows into training, validation and test; "
            "scores are their means, intervals and tests carry them."
        ),
    ] = 1
    margin: Annotated[
        float, Interval(ge=0, lt=1), Help("Accuracy that a cheaper rung may lack to be preferred.")
    ] = 0.01
    curve: Annotated[
        tuple[Annotated[int, Ge(1)], ...],
        Help("Training sizes of a learning curve, as 100,300,1000."),
    ] = ()
    reuse: Annotated[
        tuple[str, ...],
        Help("Finished run folders on the same rows and split, taken as rows of the table."),
    ] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepSettings:
    """What a sweep asks beyond the settings that it varies."""

    search: Annotated[
        Literal["tpe", "random"] | None,
        Help(
            "Try --trials combinations in place of all: settings may then be ranges, as 1..256. "
            "tpe learns from what it saw, random does not."
        ),
    ] = None
    trials: Annotated[int, Ge(1), Help("Combinations that a search tries.")] = 20
    seeds: Annotated[
        int,
        Ge(1),
        Help("Train every combination with so many seeds; the choice and its tests carry them."),
    ] = 1
    jobs: Annotated[
        int | None,
        Ge(1),
        Help("Cells at a time, the cores shared among them. Default: 1; with --ray, one a node."),
    ] = None
    ray: Annotated[
        str | None,
        Help(
            "Run the cells on Ray: on a running cluster, else on one that is started here; or at "
            "an address. All nodes must see --out."
        ),
    ] = None
    keep_adapters: Annotated[
        bool,
        Help("Keep what every cell learned; else only the chosen and the recommended one's."),
    ] = False
