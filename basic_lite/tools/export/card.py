"""The model card of an exported folder: its ``README.md``, as model hubs show it."""

import json
import re
from pathlib import Path

from huggingface_hub import ModelCardData, RepoCard
from transformers.utils import cached_file

from basic_lite.console import command_line
from basic_lite.model.device import dtype_name
from basic_lite.recipe.schema import Recipe, SourceSection
from basic_lite.sizes import GIB, size_text
from basic_lite.supervision import RefinementCurve
from basic_lite.tools.export.check import Checked
from basic_lite.tools.export.folder import Source
from basic_lite.tools.export.merge import MERGED_INTO
from basic_lite.training.assembly import basic_is_on
from basic_lite.training.log_lines import damaged_text, read_log
from basic_lite.training.look_lines import looks_in
from basic_lite.training.loss_text import loss_text

PAPER = "[BASIC](https://arxiv.org/abs/2508.06895) (ICCV 2025)"


def model_card(
    source: Source, checked: Checked | None, name: str, run: Path, gguf_differs: list[str] | None = None
) -> str:
    """The card's text.

    Args:
        name: what the model is called.
        run: the run folder, whose log has the figures.
        gguf_differs: in what the GGUF files differ from the training; None: there are none.
    """
    bases = {part: base for part, base in source.bundle.manifest["models"].items() if base}
    licences = {base: licence_of(base) for base in bases.values()}
    known = set(licences.values())
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        base_model=[base for base in bases.values() if not is_local(base)] or None,
        license=next(iter(known)) if len(known) == 1 and None not in known else "other",
        tags=["llava", "basic-lite"],
    )
    open_points = [f"{part}: {public_name(base)}" for part, base in bases.items() if licences[base] is None]
    sections = [
        f"# {name}",
        *(
            [f"> Before you publish this, fill in the licence above: none is stated by {', '.join(open_points)}."]
            * bool(open_points)
        ),
        _what(source.bundle.recipe),
        "## Models\n\n" + _rows([("part", "model", "licence"), *_models(bases, licences)]),
        "## Training\n\n" + _rows([("", ""), *_training(source)]),
        "## Measured\n\nOf the model as it was trained; what the export changes is below.\n\n"
        + _rows([("", ""), *_measured(run, source.bundle.step, checked)]),
        "## This export\n\n" + _export(source, checked),
        "## Use\n\n" + _use(name),
    ]
    if gguf_differs is not None:
        sections.append(_GGUF + "\n".join(f"- {difference}" for difference in gguf_differs))
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"


_GGUF = """\
llama.cpp and Ollama, from the folder `gguf`:

```bash
llama-server -m text.gguf --mmproj mmproj.gguf
ollama create my-model -f Modelfile
```

What they do otherwise than the training did:

"""


def is_local(base: str) -> bool:
    """Whether a base model is a folder here and no name on a hub."""
    return Path(base).is_absolute() or Path(base).is_dir() or base.count("/") != 1


def public_name(base: str) -> str:
    """The name of a base model without the folders of this machine."""
    return Path(base).name if is_local(base) else base


def hub_name(folder: str) -> str:
    """A folder's name as the hub takes it for a model's."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", folder).strip("-.") or "NAME"


def licence_of(base: str) -> str | None:
    """The licence that a base model's own card states; None where it has no card or states none."""
    try:
        card = cached_file(base, "README.md", local_files_only=True, _raise_exceptions_for_missing_entries=False)
        stated = RepoCard.load(card).data.to_dict().get("license") if card else None
    except Exception:  # the card of others may be wrong in any way
        return None
    return str(stated) if stated else None


def _rows(rows: list[tuple[str, ...]]) -> str:
    """A Markdown table; the first row is its head."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def _what(recipe: Recipe) -> str:
    parts = "a projector and LoRA" if recipe.lora.enabled else "a projector"
    stage = f"{parts} (stage {recipe.stage}, on {'captions' if recipe.stage == 1 else 'conversations'})"
    how = (
        f"with {PAPER}, which trains the projector on the LLM's own refined visual tokens"
        if basic_is_on(recipe)
        else f"without {PAPER}"
    )
    return f"A vision-language model (LLaVA), trained with basic-lite: {stage} {how}."


def _models(bases: dict[str, str], licences: dict[str, str | None]) -> list[tuple[str, ...]]:
    names = {"base": "all (llava-hf)", "vision": "vision encoder", "llm": "LLM"}
    return [
        (names[part], public_name(base), licences[base] or "not stated in its files") for part, base in bases.items()
    ]


def _training(source: Source) -> list[tuple[str, ...]]:
    recipe, manifest = source.bundle.recipe, source.bundle.manifest
    training, lora, basic = recipe.training, recipe.lora, recipe.supervision
    sources = [recipe.data.train] if isinstance(recipe.data.train, SourceSection) else recipe.data.train
    names = [one.hub or Path(one.path or one.parquet or one.saved or "").name for one in sources]
    rate = f", LoRA {training.learning_rate:g}" if lora.enabled else ""
    rows: list[tuple[str, ...]] = [
        ("data", ", ".join(names)),
        ("steps", f"{manifest['step']} of {manifest['total_steps']}, {manifest['data']['samples']:,} samples"),
        ("global batch", str(training.global_batch)),
        ("learning rate", f"projector {training.projector_learning_rate:g}{rate}"),
        ("LLM in training", "16 or 32 bit" if recipe.quantization.mode == "none" else "NF4"),
        ("LoRA", f"rank {lora.rank}, alpha {lora.alpha:g}" if lora.enabled else "none"),
        ("conversation format, pictures", f"{recipe.data.template}, {recipe.data.image_fit}"),
    ]
    if basic_is_on(recipe):
        chosen = manifest.get("target")  # what was measured; None: as the recipe says
        share = isinstance(basic.layers, float)
        layers = f"supervised layers: {basic.layers:g} of all" if share else f"{basic.layers} supervised layers"
        layers = f"{len(chosen['layer_weights'])} supervised layers" if chosen else layers
        weights = f"λ1 {basic.lambda_das:g}, λ2 {basic.lambda_sds:g}"
        gate = "gate" if basic.gate else "no gate"
        robust = f"target norm {basic.target_norm}, sinks {basic.sinks}"
        rows.append(("BASIC", f"preset {basic.preset}, {layers}, {weights}, {robust}, {gate}"))
    return rows


def _measured(run: Path, step: int, checked: Checked | None) -> list[tuple[str, ...]]:
    """Figures of the check, and of the run's log up to a step."""
    log = read_log(run)
    lines = [line for line in log.rare if line["step"] <= step]
    rows: list[tuple[str, ...]] = []
    if checked is not None:
        where = f"{checked.samples} {'held-out' if checked.held_out else 'training'} samples"
        control = "the same, each with another sample's picture"
        rows += [(f"LM loss, {where}", f"{checked.lm_loss:.3f}"), (control, f"{checked.lm_loss_other_image:.3f}")]
        if checked.exact is not None:
            rows += [(f"exact match, {where}", f"{checked.exact:.3f}"), (control, f"{checked.exact_other_image:.3f}")]
    losses = [line["eval_loss"] for line in lines if "eval_loss" in line]
    if losses:
        rows.append((f"LM loss on `data.eval`, at step {step}", loss_text(losses[-1], 4)))
    curves = [line["refinement"] for line in lines if (line.get("refinement") or {}).get("score")]
    looks = looks_in(lines)
    if curves:
        rows.append(
            (
                "BASIC's premise: how well the projector (v) and its target (v̂) name what is seen (one run)",
                # Where a gate judges, some of these samples chose the target.
                RefinementCurve.from_dict(curves[-1]).comparison(judged=not looks),
            )
        )
    if looks:
        rows.append(("whether it holds, by the samples that decide", f"{looks[-1].text}: {looks[-1].verdict}"))
    times, peaks = ([one for one in log.series[key] if one[0] <= step] for key in ("step_s", "peak_memory_gib"))
    if times:
        before = [0, *(at for at, _ in times)]
        seconds = sum(each * (at - start) for (at, each), start in zip(times, before, strict=False))
        rows.append(("time of the steps", f"{seconds / 3600:.1f} h" if seconds > 3600 else f"{seconds / 60:.1f} min"))
    if peaks:
        rows.append(("peak memory", size_text(int(max(gib for _, gib in peaks) * GIB))))
    if log.damaged:
        rows.append(("the run's log", damaged_text(log.damaged)))
    return rows or [("nothing", "the run's log isn't here")]


def _export(source: Source, checked: Checked | None) -> str:
    text = f"Merged into {MERGED_INTO[source.merge.into]}; {dtype_name(source.dtype)}, {size_text(source.size_bytes)}."
    if source.changed:
        text += " Files of its base models were changed after the training; these are exported as they are now."
    if checked is None:
        return text + " It was not compared with the trained model."
    drift = checked.drift[checked.merged_into]
    return (
        f"{text} Compared with the trained model on {checked.samples} samples ({checked.tokens} tokens of answers): "
        f"{checked.same_ids} with equal token ids, {checked.same_pixels} with equal pixels, "
        f"{checked.same_answers} with equal greedy answers; KL {drift.kl:.2g} nats a token, "
        f"{drift.same_next:.1%} equal next tokens. "
        f"{'It passed' if checked.passed else 'It FAILED'} (limit {checked.limit:g}). `export.json` has all figures."
    )


def _use(name: str) -> str:
    quoted = json.dumps(name, ensure_ascii=False)  # Python's form too
    return f"""\
`{name}` stands for the path of this folder, or for its name on a hub (`owner/{name}`).

transformers:

```python
from transformers import pipeline

ask = pipeline("image-text-to-text", model={quoted})
content = [{{"type": "image", "url": "picture.jpg"}}, {{"type": "text", "text": "What is this?"}}]
print(ask(text=[{{"role": "user", "content": content}}], return_full_text=False)[0]["generated_text"])
```

Where torchvision is installed, transformers resizes pictures with it, a little otherwise than the training did;
`AutoProcessor.from_pretrained({quoted}, backend="pil")` doesn't.

vLLM, as a server with OpenAI's interface:

```bash
{command_line(["vllm", "serve", name])}
```"""
