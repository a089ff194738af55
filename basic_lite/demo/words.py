"""The demo's tokenizer: one token per word, and a chat template of its own."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from basic_lite.demo.world import COLOURS, COLUMNS, NUMBERS, ROWS, SHAPES

PAD, BOS, EOS, UNK = "<pad>", "<s>", "</s>", "<unk>"

# `generation` marks what the assistant says, which lets transformers return a mask of the supervised tokens.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if not loop.first %}{{ '\\n' }}{% endif %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ 'assistant: ' }}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% elif message['role'] in ['user', 'system'] %}"
    "{{ message['role'] + ': ' + message['content'] }}"
    "{% else %}"
    "{{ raise_exception('the roles are system, user and assistant, not ' + message['role']) }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\nassistant: ' }}{% endif %}"
)

_WORDS = """
    user assistant system describe the image what colour shape is object where how many objects are there
    left of a an and at empty yes no
"""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Make the tokenizer: words, punctuation marks and line breaks are tokens; letter case and spaces are not kept.

    It has no `<image>` token: whoever joins the LLM to a vision encoder adds one, as with any LLM.
    """
    words = [PAD, BOS, EOS, UNK, "\n", *":?.,", *_WORDS.split(), *COLOURS, *SHAPES, *ROWS, *COLUMNS, *NUMBERS]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(words))}
    core = Tokenizer(WordLevel(vocabulary, unk_token=UNK))
    core.normalizer = Lowercase()
    # `invert` makes the pattern say what a token is; all else, which is blanks, is dropped.
    core.pre_tokenizer = Split(Regex(r"\w+|[^\w\s]|\n"), behavior="removed", invert=True)
    core.post_processor = TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, vocabulary[BOS])])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNK,
        model_max_length=512,
        # Removing blanks before punctuation would be a second, lossy rule beside the pre-tokenizer's.
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
