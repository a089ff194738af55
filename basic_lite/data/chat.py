"""A record as the model gets it: token ids, label mask, and the prompt of a generation."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from basic_lite.data.conversation import conversation
from basic_lite.data.problems import BadPlaceholders, NoSupervisedToken, RecordProblem, TemplateStopped, TooLong
from basic_lite.data.records import Record, Turn
from basic_lite.data.templates import FORMATS, Format, Pieces
from basic_lite.data.tokens import IGNORE, Tokens
from basic_lite.errors import UserError
from basic_lite.recipe.schema import Template
from basic_lite.sizes import number_of

if TYPE_CHECKING:
    from basic_lite.model.frontend import Frontend

# Of the pictures of one question: no model reads as many, and their ids alone would fill the memory.
_MOST_TOKENS = 10_000_000


@dataclass(frozen=True)
class Encoded:
    """One sample: ids and labels of the same length T (`IGNORE` where unsupervised), and how many images.

    ``cut`` is how many text tokens were cut off to fit `data.max_length`.
    """

    input_ids: list[int]
    labels: list[int]
    n_images: int
    cut: int = 0


class Encoder(Protocol):
    """Turns a record into a sample, or says what is wrong with it."""

    def encode(self, record: Record, max_length: int) -> Encoded:
        """Ids and labels of a record, at most ``max_length`` of them."""
        ...


@contextmanager
def _named(record: Record) -> Iterator[None]:
    """Around work with a record: its place is in what is raised."""
    try:
        yield
    except RecordProblem as problem:
        raise problem.at(record.place) from problem.__cause__
    except TemplateStopped as error:
        raise TemplateStopped(f"{record.place}: {error}") from error.__cause__


class ChatFormat:
    """Turns records into tokens. Picklable.

    Args:
        template: plain, v1, or tokenizer (`data.template`).
        tokenizer: The LLM's.
        image_token_id: Id that stands N times for each image.
        tokens_per_image: N.

    Raises:
        UserError: the template and the tokenizer don't go together.
    """

    def __init__(self, template: Template, tokenizer: Any, image_token_id: int, tokens_per_image: int) -> None:
        self.template = template
        self.tokenizer = tokenizer
        self.image_token_id = image_token_id
        self.tokens_per_image = tokens_per_image
        self.tokens = Tokens(tokenizer, image_token_id, tokens_per_image)
        self.format: Format = FORMATS[template](self.tokens)
        self.stop_token_ids = self._stops()

    @classmethod
    def of(cls, template: Template, frontend: "Frontend") -> "ChatFormat":
        """That of a model."""
        return cls(template, frontend.tokenizer, frontend.image_token_id, frontend.tokens_per_image)

    def _stops(self) -> list[int]:
        """Tokens that end an answer: eos, and the template's end of turn where that is one token.

        Raises:
            UserError: training would end answers with neither, so none would end in a generation.
        """
        ids = self.tokens.encode([("a", False), (self.format.end_of_turn.strip(" "), True)])[1]
        ending = [one for one in ids if one != IGNORE]
        eos = self.tokenizer.eos_token_id
        # What isn't known may become one token too, which stands for all that isn't known.
        known = len(ending) == 1 and ending[0] != self.tokenizer.unk_token_id
        if not known and eos not in ending:
            raise UserError(
                f"the tokenizer's chat template ends an answer with {self.format.end_of_turn!r:.60}, and its "
                "vocabulary has no such token, so no answer would stop; set data.template to v1 or plain, or take chat "
                "template and tokenizer of one model"
            )
        return sorted(set(ending if known else []) | ({eos} if eos is not None else set()))

    def encode(self, record: Record, max_length: int) -> Encoded:
        """Ids and labels of a record, at most ``max_length`` of them.

        Image tokens are never cut; text is cut from the end, its labels with it.

        Raises:
            TooLong: the images and at least one supervised token don't fit.
            NoSupervisedToken: it has no answer.
            BadPlaceholders, BadRecord, TemplateRefused: the conversation can't be encoded.
            TemplateStopped: neither could others, and each took seconds.
        """
        with _named(record):
            turns = conversation(record)
            self._require_room(len(record.images), max_length)
            return self._fit(*self._encode(self.format.pieces(turns), record), max_length)

    def prompt(self, record: Record) -> list[int]:
        """Ids up to where the last answer starts, the same as in training, for generation.

        A record that ends with a human turn is a question: the answer starts after it.

        Raises:
            RecordProblem, TemplateStopped: the record can't be written in this format.
        """
        with _named(record):
            turns = conversation(record, answered=False)
            asked = turns[:-1] if turns[-1].role == "gpt" else turns
            pieces = self.format.pieces([*asked, Turn("gpt", "a")])
            # The last run of supervised pieces is the answer "a"; what is before it is the prompt.
            while not pieces[-1][1]:
                pieces.pop()
            while pieces and pieces[-1][1]:
                pieces.pop()
            return self._encode(pieces, record)[0]

    def reference(self, record: Record) -> str:
        """The last answer: that of the last gpt turn, else the record's own ``answer``, else empty."""
        answers: list[str] = []
        for turn in reversed([turn for turn in record.turns if turn.role != "system"]):
            if turn.role != "gpt":
                break
            # Turns of one role in a row are one.
            answers.insert(0, turn.text)
        return ("\n".join(answers) if answers else record.answer or "").strip()

    def _require_room(self, images: int, max_length: int) -> None:
        of_images = images * self.tokens_per_image
        if of_images + 1 > max_length:
            raise TooLong(
                f"its {number_of(images, 'image')} take{'s' * (images == 1)} {of_images} tokens, which with at least "
                f"one of text is more than data.max_length {max_length}",
                "raise data.max_length, or set data.too_long=drop",
            )

    def _encode(self, pieces: Pieces, record: Record) -> tuple[list[int], list[int], int]:
        if (of_images := len(record.images) * self.tokens_per_image) > _MOST_TOKENS:
            raise TooLong(
                f"its {len(record.images):,} images take {of_images:,} tokens, more than any model reads",
                "leave some out",
            )
        ids, labels, images = self.tokens.encode(pieces)
        if images != len(record.images) or ids.count(self.image_token_id) != images * self.tokens_per_image:
            raise BadPlaceholders(
                f"the chat template has written {images} of its {len(record.images)} images", "set data.template=v1"
            )
        return ids, labels, images

    def _fit(self, ids: list[int], labels: list[int], images: int, max_length: int) -> Encoded:
        cut = len(ids) - max_length
        if labels.count(IGNORE) == len(labels):
            raise NoSupervisedToken("its answers have no token for this tokenizer", "correct the answers")
        if cut <= 0:
            return Encoded(ids, labels, images)
        of_images = images * self.tokens_per_image
        text = [n for n, one in enumerate(ids) if one != self.image_token_id]
        gone = set(text[-cut:])
        kept = [n for n in range(len(ids)) if n not in gone]
        kept_labels = [labels[n] for n in kept]
        if all(label == IGNORE for label in kept_labels[1:]):
            raise TooLong(
                f"its prompt alone fills data.max_length {max_length} ({len(ids)} tokens, {of_images} of "
                f"them of images): cut to fit, it has no supervised token left",
                "raise data.max_length, or set data.too_long=drop",
            )
        return Encoded([ids[n] for n in kept], kept_labels, images, cut)
