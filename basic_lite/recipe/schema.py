"""Every recipe key: type, default, unit, and one line of what it does and costs.

Plain data, no torch: the command line validates a recipe before anything heavy is imported.
Reading and error reporting are in ``load.py``, keys that cannot work together in ``combinations.py``.
"""

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from basic_lite.recipe.presets import keys_of
from basic_lite.recipe.texts import text_problem, texts_in

# The split of a source that names none; whatever has no splits is read whole.
ANY_SPLIT = "train"
# The most steps, samples or records that a key may name: a billion.
MOST = 1_000_000_000

# Types of values that code outside takes by the same name.
Stage = Literal[1, 2]
Device = Literal["auto", "cpu", "cuda"]
Template = Literal["plain", "v1", "tokenizer"]
ImageFit = Literal["square", "pad"]
ImageCheck = Literal["open", "exists", "none"]
Grouping = Literal["modality_length", "length", "none"]
PaddingSide = Literal["right", "left"]
# Metrics for which a record's own answer is enough; VQA accuracy needs those of several people.
EvalMetric = Literal["exact", "relaxed", "yes_no", "choice", "anls"]
Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]


class Section(BaseModel):
    """A group of recipe keys: unknown keys and wrong types are refused, never coerced."""

    model_config = ConfigDict(extra="forbid", strict=True, validate_default=True, allow_inf_nan=False)

    @model_validator(mode="after")
    def _usable_texts(self) -> Self:
        for key in type(self).model_fields:
            for text in texts_in(getattr(self, key)):
                if problem := text_problem(key, text):
                    raise ValueError(f"{key} {problem}")
        return self


class ModelSection(Section):
    """Which models are put together. Either ``base`` or both ``vision`` and ``llm``; ``start`` brings its run's own."""

    base: str | None = Field(None, description="An existing llava-hf checkpoint (hub name or folder) to open.")
    vision: str | None = Field(None, description="Vision encoder, CLIP or SigLIP (hub name or folder).")
    llm: str | None = Field(None, description="Causal language model (hub name or folder).")
    projector: str | None = Field(
        None, description="Run folder or bundle whose projector is taken (stage 1's); none: a fresh projector."
    )
    projector_start: Literal["default", "matched"] = Field(
        "default",
        description="A fresh projector's weights. default: as PyTorch makes them; matched: its output is scaled to the "
        "mean norm of the LLM's input embeddings, measured on some of the data's pictures.",
    )
    start: str | None = Field(
        None,
        description="Run folder or bundle to go on from in a new run: its projector, its LoRA and its models, which "
        "need not be named then. Optimizer and learning rates begin anew, with their warm-up; none: no earlier run.",
    )
    image_token: str = Field(
        "<image>", description="The placeholder token; added to the tokenizer of a fresh composition."
    )
    vision_feature_layer: int = Field(
        -2, ge=-1000, le=1000, description="Hidden state of the vision encoder that feeds the projector."
    )
    vision_feature_select: Literal["default", "full"] = Field(
        "default", description="default: patch features only, no class token; full: all (SigLIP has no class token)."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Type of the frozen parts that aren't in 4 bit. auto: bfloat16 where the GPU has it, else float32.",
    )
    attention: Literal["sdpa", "eager", "flash_attention_2"] = Field(
        "sdpa", description="The LLM's attention; flash_attention_2 needs flash-attn installed."
    )
    tower_on_host: bool = Field(
        False,
        description="Keep the frozen vision tower in pinned host memory and bring it to the GPU for its forward only. "
        "Saves 0.6 GiB for CLIP-L, costs a copy in each micro-batch; the same result. GPU only, in training only.",
    )


class QuantizationSection(Section):
    """How the LLM's linear layers are held. Tower, projector, embeddings and head are never quantised."""

    mode: Literal["nf4", "none"] = Field(
        "nf4", description="nf4: 4-bit NormalFloat, about 0.52 bytes a weight; none: `model.dtype`."
    )
    double: bool = Field(True, description="Quantise the block statistics too: 0.4 bit a weight less.")
    compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Type the 4-bit weights are multiplied in; auto: as `model.dtype`. With float16 the loss of a "
        "large step is made larger for its backward, so that no gradient becomes 0.",
    )


class LoraSection(Section):
    """Low-rank adapters on the LLM (PEFT). Leave ``enabled: false`` for projector pre-training."""

    enabled: bool = Field(False, description="Train LoRA adapters on the LLM.")
    rank: int = Field(128, ge=1, le=16_384, description="Rank r; memory and optimizer state grow with it.")
    alpha: float = Field(256.0, gt=0, le=1_000_000, description="Scale: the update is multiplied by alpha / rank.")
    dropout: float = Field(
        0.05, ge=0, lt=1, description="Dropout before the adapter; 2 to 4 % of a 7B step's time (counted). 0: none."
    )
    targets: Literal["all-linear"] | list[str] = Field(
        "all-linear", description="all-linear: every linear layer of the LLM's decoder; or a list of module names."
    )
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Type of the adapter weights.")


class SourceSection(Section):
    """One data source: a file (``path``), a folder of pictures, or `datasets` (``hub``, ``parquet``, ``saved``)."""

    path: str | None = Field(None, description="JSON, JSONL, CSV or TSV file; docs/DATA.md shows what may be in it.")
    folder: str | None = Field(
        None, description="Folder of pictures with .txt files of the same name, or with a metadata.csv (`imagefolder`)."
    )
    hub: str | None = Field(None, description="Name of a data set on the hub.")
    config: str | None = Field(None, description="Configuration of the hub data set.")
    parquet: str | None = Field(None, description="Local parquet file, or a glob of them.")
    saved: str | None = Field(None, description="Folder written by `Dataset.save_to_disk`.")
    split: str = Field(ANY_SPLIT, description="Split of `hub`, `saved`, or an `imagefolder`.")
    image_dir: str | None = Field(None, description="Folder that image paths are relative to; default: beside `path`.")
    prompt: str | list[str] | None = Field(
        None,
        description="For pictures with a text but no question: what is asked. Of several, each record has its own.",
    )
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="Column map, ours to theirs, where the data has other names: "
        "id, image, conversations, question, answer, question_type.",
    )
    limit: int | None = Field(None, ge=1, le=MOST, description="Take only the first so many records.")


class DataSection(Section):
    """What is read, how it becomes tokens, and what happens to records that can't be used."""

    train: SourceSection | list[SourceSection] = Field(description="Training data: one source or a list.")
    eval: SourceSection | list[SourceSection] | None = Field(
        None, description="Held-out data, for the loss during training."
    )
    held_out: float | None = Field(
        None,
        gt=0,
        le=0.5,
        description="Share of `data.train` that is kept for evaluation and not trained on, drawn by `seed`. Records "
        "that share a picture stay together. Instead of `data.eval`.",
    )
    template: Template = Field(
        "v1", description="plain: image, then caption (stage 1); v1: Vicuna; tokenizer: the LLM's own template."
    )
    max_length: int = Field(
        2048,
        ge=8,
        le=2**20,
        description="Tokens a sample may have, image tokens included. Text is cut, image tokens never.",
    )
    too_long: Literal["drop", "refuse"] = Field(
        "refuse",
        description="A sample that doesn't fit even with its text cut: drop it and list it, or refuse to start.",
    )
    bad_records: Literal["drop", "refuse"] = Field(
        "refuse",
        description="A broken record (no image, no supervised token): drop it and list it, or refuse to start. A "
        "picture that breaks while the run goes on: leave it out of its step, or save and stop.",
    )
    image_fit: ImageFit = Field(
        "pad", description="square: resize to a square; pad: pad to a square with the mean colour, then resize."
    )
    jpeg_draft: bool = Field(
        False,
        description="Decode JPEGs at a half, a quarter or an eighth where that leaves twice the encoder's side: photos "
        "of 12 megapixels in a fifth of the time; small ones stay as they are. Pixels differ from what evaluations, "
        "chats and exports see: of a photo by 0.2 grey levels in the mean, of scanned text and drawings by 2 to 3.",
    )
    check_images: ImageCheck = Field(
        "open",
        description="What is done with each image before step 0. open: decode it; minutes for 600,000 at the first "
        "start, seconds later (whole files are remembered, by size and time). exists: see that the file is there.",
    )
    padding_side: PaddingSide = Field("right", description="Side on which batches are padded in training.")
    group_by: Grouping = Field(
        "modality_length", description="Batch samples of like length (and of one modality): less padding."
    )
    workers: int = Field(2, ge=0, le=256, description="Data loader processes; 0: in the training process.")


class SupervisionSection(Section):
    """BASIC itself (METHOD: arXiv 2508.06895). What the paper states is marked [paper], our choice [open]."""

    preset: Literal["paper", "measured"] = Field(
        "paper",
        description="Defaults of the keys below. paper: the method as published. measured: a robust target, layers "
        "from the refinement curve, a guard, and BASIC only where it is shown to help. Keys that are given win.",
    )
    enabled: bool = Field(True, description="Compute the BASIC losses. false: the run is LLaVA's own.")
    gate: bool = Field(
        False,
        description="BASIC is on only once the refinement curve shows, with 95 % confidence, that v̂ is better than v, "
        "and a small move of the projector as BASIC pulls it lowers the loss of other samples. Looks at the start, "
        "after 16, 32, 64 … steps, and at each evaluation. All of it costs at most 1 % of the run; where that is too "
        "little, one look at 32 samples, and the move tried once with 24; then the run says what that costs.",
    )
    stages: list[Stage] = Field(
        default_factory=lambda: list[Stage]((1, 2)), description="Stages (key `stage`) BASIC is on in. [paper] both."
    )
    layers: int | float | Literal["measured"] = Field(
        0.5,
        description="Supervised layers K: a count (int), a fraction of the LLM's (float), or measured: up to the best "
        "layer of the refinement curve. [paper] half.",
    )
    layer_weights: Literal["quadratic", "linear", "constant", "decreasing", "measured"] = Field(
        "quadratic",
        description="w_h over layers 1..K. measured: by how much the layer's score is above that of v. [paper] h²/Σh².",
    )
    detach: bool = Field(True, description="No gradient flows into the target. [open]")
    target_norm: Literal["none", "final", "layer"] = Field(
        "none",
        description="[open] none: layers are added as they are, and in a real LLM one dimension then holds most of v̂. "
        "final: the LLM's last norm on each layer. layer: each layer's rows to one size, massive dimensions left out.",
    )
    sinks: Literal["keep", "drop"] = Field(
        "keep",
        description="[paper] keep: every visual token counts. drop: a_i is 0 where a token is more than 4 times as "
        "long as its sample's median in a supervised layer: an attention sink (up to 190 times as long in SmolLM2).",
    )
    token_weights: Literal["attention", "uniform"] | float = Field(
        "attention",
        description="a_i. attention: attention mass [paper]; uniform: the step's mean Σa, spread evenly over "
        "a sample's visual tokens (one more forward a step); or Σa as a fixed number, spread evenly.",
    )
    text_queries: Literal["all", "prompt", "response"] = Field(
        "all", description="Text tokens whose attention counts. [paper] all."
    )
    direction: Literal["cosine", "mse", "off"] = Field("cosine", description="DAS loss. [paper] cosine.")
    vocabulary: Literal["input_embeddings", "lm_head"] = Field(
        "input_embeddings", description="SDS table E. [open] input embeddings."
    )
    sds_tokens: int | None = Field(
        None,
        ge=1,
        le=MOST,
        description="Visual tokens of each sample that SDS is computed on, drawn anew in each step; the loss stays "
        "unbiased, and gets noisier. Saves SDS's time in proportion. [open] none: all of them.",
    )
    temperature: float = Field(
        1.0, ge=1e-6, le=1_000_000, description="Temperature of both SDS distributions. [open] 1."
    )
    lambda_das: float = Field(1.0, ge=0, le=1_000_000, description="λ1. [paper] 1; 0 turns DAS off.")
    lambda_sds: float = Field(0.01, ge=0, le=1_000_000, description="λ2. [paper] 0.01; 0 turns SDS off.")
    guard: float | None = Field(
        None,
        gt=0,
        le=1_000_000,
        description="Gradient guard at v: per sample, what of BASIC's gradient opposes the LM loss's is taken out, and "
        "its norm is capped at this many times the LM's. Limits harm to first order at v; costs one [M, D] gradient. "
        "[open] none: no guard.",
    )
    every_n_steps: int = Field(1, ge=1, le=MOST, description="Compute the losses on every n-th optimizer step only.")
    warmup_ratio: float = Field(
        0.0, ge=0, le=1, description="Share of all steps over which the λs rise linearly from 0."
    )
    refinement_batches: int = Field(
        16,
        ge=0,
        le=100_000,
        description="How many times 4 samples the refinement curve is measured on, at start and each evaluation; 0: "
        "none. 16 (64 samples, one forward each) decide a gap of .05 between target and projector (docs/METHOD.md).",
    )

    @model_validator(mode="after")
    def _with_preset(self) -> Self:
        for key, value in keys_of(self.preset).items():
            if key not in self.model_fields_set:
                setattr(self, key, value)
        return self


class TrainingSection(Section):
    """Optimisation. One optimizer step sees ``global_batch`` samples, whatever ``micro_batch`` is."""

    learning_rate: float = Field(2e-4, ge=0, le=1000, description="Learning rate of the LoRA weights.")
    projector_learning_rate: float = Field(2e-5, ge=0, le=1000, description="Learning rate of the projector.")
    epochs: float = Field(1.0, gt=0, le=1_000_000, description="Passes over the data; ignored when `max_steps` is set.")
    max_steps: int | None = Field(None, ge=1, le=MOST, description="Optimizer steps.")
    global_batch: int = Field(128, ge=1, le=1_000_000, description="Samples of one optimizer step.")
    micro_batch: int = Field(1, ge=1, le=4096, description="Samples in memory at once; must divide `global_batch`.")
    plan: Literal["manual", "auto"] = Field(
        "manual",
        description="auto: when the run starts, the fastest way to carry out a step that fits the memory that is free. "
        "It chooses `micro_batch`, `gradient_checkpointing`, `offload_activations` and `model.tower_on_host`, unless "
        "the recipe gives them; the result is the same. manual: what the recipe gives, and defaults.",
    )
    scheduler: Literal["cosine", "linear", "constant", "constant_with_warmup"] = Field(
        "cosine", description="Learning rate schedule."
    )
    warmup_ratio: float = Field(0.03, ge=0, le=1, description="Share of the steps over which the rate rises.")
    weight_decay: float = Field(0.0, ge=0, le=1000, description="AdamW's weight decay.")
    max_grad_norm: float = Field(1.0, ge=0, le=MOST, description="Gradient clipping; 0: none.")
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit", "paged_adamw"] = Field(
        "adamw", description="8-bit and paged ones (bitsandbytes) keep the projector's state in 32 bit."
    )
    betas: tuple[float, float] = Field((0.9, 0.999), description="AdamW's betas.")
    gradient_checkpointing: bool | int = Field(
        True,
        ge=0,
        le=10_000,
        description="LLM layers whose activations are recomputed in the backward: far less memory, 40 to 50 % more "
        "time if it is all of them (true), in proportion for a number (the first N layers); the same result.",
    )
    offload_activations: bool = Field(
        False,
        description="Keep the inputs of the recomputed layers in pinned host memory. Saves B·T·D numbers a layer on "
        "the GPU, costs a copy out and back in each micro-batch; the same result. GPU only.",
    )
    autocast: Literal["auto", "bfloat16", "off"] = Field(
        "auto", description="auto: bf16 autocast where the GPU has it."
    )
    use_liger_kernel: bool | Literal["auto"] = Field(
        "auto",
        description="Liger's kernels for the LLM's RMSNorm, RoPE and gated MLPs (Llama, Mistral, Gemma, Phi-3, Qwen): "
        "less time and memory, the same result but for rounding. auto: where Triton runs.",
    )
    save_every: int = Field(500, ge=1, le=MOST, description="Optimizer steps between checkpoints.")
    keep: int = Field(2, ge=1, le=MOST, description="Checkpoints kept.")
    eval_every: int | None = Field(
        None,
        ge=1,
        le=MOST,
        description="Optimizer steps between evaluations on held-out data (`data.eval`, `data.held_out`); none: one, "
        "at the end. Each is a forward over all of it: about a third of a training epoch over as many samples.",
    )
    eval_answers: int = Field(
        2,
        ge=0,
        le=10_000,
        description="Held-out questions answered on the terminal at each evaluation, a few seconds each; the report "
        "shows 12 answers of the run's start and end. 0: none.",
    )
    eval_generate: int = Field(
        0,
        ge=0,
        le=10_000,
        description="Held-out questions, a fixed sample, that the model answers at each evaluation: with their "
        "picture, with another one and without. Scored by `eval_metric`, on the terminal, in log and report. "
        "Costs three answers a question: about what `basic-lite eval` takes for as many. 0: none.",
    )
    eval_metric: EvalMetric = Field(
        "exact", description="How the answers of `eval_generate` are scored, as by `basic-lite eval --metric`."
    )
    metric_for_best_model: Literal["auto", "off", "score", "loss"] = Field(
        "auto",
        description="The step that is best by this, on held-out data, is kept in the run folder as best/. score: of "
        "`eval_generate`, the highest; loss: held-out, the lowest; of equals the earlier. auto: score where "
        "`eval_generate` is on, else off. Takes the disk of a second result; final/ stays the last step.",
    )
    text_probe: bool = Field(
        True,
        description="With LoRA, at the end: how much of its own ability with text the LLM has lost. It reads 43 texts "
        "and 342 questions without and with the LoRA: seconds on a card. `basic-lite text-probe` does it later.",
    )
    log_every: int = Field(1, ge=1, le=MOST, description="Optimizer steps between log lines.")
    trackers: list[Tracker] = Field(
        default_factory=lambda: list[Tracker](("tensorboard",)), description="Where curves go, besides log.jsonl."
    )
    device: Device = Field("auto", description="auto: the GPU where there is one.")
    threads: int | None = Field(None, ge=1, le=1024, description="CPU threads; none: torch's choice.")


class Recipe(Section):
    """A whole run."""

    name: str = Field(description="Name of the run; the run folder is `output` / `name`.")
    stage: Stage = Field(description="1: projector pre-training; 2: instruction tuning.")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="Seed of everything drawn: initial weights, order, dropout.")
    output: str = Field("runs", description="Folder that run folders are made in.")
    kernels: Literal["auto", "triton", "reference"] = Field(
        "auto", description="What computes BASIC's operations. auto: Triton on a GPU that has it, else PyTorch."
    )
    model: ModelSection
    quantization: QuantizationSection = Field(default_factory=QuantizationSection)
    lora: LoraSection = Field(default_factory=LoraSection)
    data: DataSection
    supervision: SupervisionSection = Field(default_factory=SupervisionSection)
    training: TrainingSection = Field(default_factory=TrainingSection)

    @property
    def run_path(self) -> Path:
        """The folder of its run."""
        return Path(self.output) / self.name
