"""Measures the LLM's own ability with text, with its LoRA switched off and on: before and after, in one load.

The texts are read as they are, without a chat template: base LLMs have none, and in the template of its training a LoRA
has also learnt a style of answers, which isn't what is asked here. lm-evaluation-harness has the same default.
"""

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from basic_lite.data.tokens import Tokens
from basic_lite.model.adapt import adapter_off, lora_parameters
from basic_lite.model.load import Loaded
from basic_lite.training.text_probe.outcome import NoOutcome, Outcome, Scores, compared, scores_of
from basic_lite.training.text_probe.scoring import Sample, nats_of, sample_of
from basic_lite.training.text_probe.texts import Passage, Question, passages, questions

# Tokens of a batch, with its padding. No micro-batch of a 7B model is smaller than this for its memory.
TOKENS_AT_ONCE = 2048
# Of the texts a tokenizer must be able to write so many, else the LLM doesn't know their language.
LEAST_SHARE = 0.5

FROZEN = "the LLM is frozen here (no LoRA), so its own ability with text is what it was"


@dataclass(frozen=True)
class Probe:
    """The texts as one tokenizer writes them."""

    passages: list[Passage]
    questions: list[Question]
    texts: list[Sample]  # of the passages
    continuations: list[Sample]  # of the questions, one after another
    left_out: int

    @property
    def samples(self) -> list[Sample]:
        """All that is scored."""
        return [*self.texts, *self.continuations]

    @property
    def tokens(self) -> int:
        """Tokens that the LLM reads once through."""
        return sum(len(one.ids) for one in self.samples)

    @property
    def sizes(self) -> list[int]:
        """Bytes of each passage's scored part."""
        return [len(one.text.encode()) for one in self.passages]

    def scores(self, nats: Sequence[float]) -> Scores:
        """Scores from −log p of ``samples``."""
        rest = iter(nats[len(self.texts) :])
        return scores_of(nats[: len(self.texts)], [[next(rest) for _ in one.continuations] for one in self.questions])


def encoded(tokens: Tokens, texts: Sequence[Passage], asked: Sequence[Question]) -> Probe:
    """The texts and questions that a tokenizer can write."""
    kept_texts, kept_questions, samples, continuations = [], [], [], []
    for passage in texts:
        sample = sample_of(tokens, passage.given, passage.text)
        if _is_whole(tokens, sample, passage.given + passage.text):
            kept_texts.append(passage)
            samples.append(sample)
    for question in asked:
        found = [sample_of(tokens, question.given, text) for text in question.continuations]
        whole = [question.given + text for text in question.continuations]
        if all(_is_whole(tokens, sample, text) for sample, text in zip(found, whole, strict=True)):
            kept_questions.append(question)
            continuations += found
    left_out = len(texts) + len(asked) - len(kept_texts) - len(kept_questions)
    return Probe(kept_texts, kept_questions, samples, continuations, left_out)


def measure(
    loaded: Loaded,
    *,
    tokens_at_once: int = TOKENS_AT_ONCE,
    progress: Callable[[int], object] = lambda done: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Outcome | NoOutcome:
    """The probe without the LoRA and with it.

    Without it means the LLM as it was loaded, in the same 4 bit; also in a run that went on from another run's LoRA. It
    leaves the model in eval mode. Weights, generators and what requires gradients stay as they are.

    Args:
        loaded: an adapted model.
        tokens_at_once, progress, stopped: see ``nats_of``; there are twice as many samples as the probe has.

    Raises:
        Stopped: ``stopped`` says so.
    """
    if not lora_parameters(loaded.model):
        return NoOutcome(FROZEN)
    texts, asked = passages(), questions()
    tokens = Tokens(loaded.tokenizer, loaded.parts.image_token_id, loaded.frontend.tokens_per_image)
    probe = encoded(tokens, texts, asked)
    if len(probe.passages) < LEAST_SHARE * len(texts) or len(probe.questions) < LEAST_SHARE * len(asked):
        written, total = len(probe.passages) + len(probe.questions), len(texts) + len(asked)
        return NoOutcome(
            "what the training cost the LLM of its own ability with text can't be measured: its tokenizer can write "
            f"{written} of the probe's {total} texts, the others have words or signs that it doesn't know"
        )
    loaded.model.eval()
    score = partial(nats_of, loaded.parts, probe.samples, tokens_at_once, progress, stopped)
    with adapter_off(loaded.parts):
        before = probe.scores(score())
    found, size = float(before.bits.sum()), sum(probe.sizes)
    # What the passages would cost if all tokens were equally likely.
    guessing = float(np.log2(len(loaded.vocabulary_ids))) * sum(one.scored for one in probe.texts)
    if guessing <= found:
        return NoOutcome(
            "the LLM itself, without the LoRA, doesn't know the language of the text probe: it needs "
            f"{found / size:.1f} bits a byte, and with every token as likely as any other it would need "
            f"{guessing / size:.1f}; so there is nothing that it could lose"
        )
    after = probe.scores(score())
    if not np.isfinite([*before.bits, *after.bits]).all():
        return NoOutcome(
            "what the training cost the LLM of its own ability with text can't be measured: its log-probabilities are "
            "not finite; with model.dtype=float16 that is an overflow, and model.dtype=bfloat16 has none"
        )
    kinds = [one.kind for one in probe.passages], [one.kind for one in probe.questions]
    return compared(before, after, probe.sizes, *kinds, probe.left_out)


def _is_whole(tokens: Tokens, sample: Sample, text: str) -> bool:
    """Whether all letters and digits of a text are in its tokens; spaces and capital letters may be lost."""
    tokenizer = tokens.tokenizer
    ids = sample.ids[len(tokens.bos) :]
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
        return False
    return bool(sample.scored) and _letters(tokenizer.decode(ids)) == _letters(text)


def _letters(text: str) -> list[str]:
    return [sign for sign in unicodedata.normalize("NFKC", text).casefold() if sign.isalnum()]
