"""Mistral 3: Pixtral's vision tower, pictures of any size, patches merged in the projector.

``[IMG_BREAK]`` and ``[IMG_END]`` are text tokens of their own, no placeholders.
"""

from basic_lite.model.families.family import Family
from basic_lite.model.families.pixtral import tokens_of, views_of

MISTRAL3 = Family(
    name="Mistral 3",
    model_type="mistral3",
    tokens=tokens_of,
    views=views_of,
    not_trained="its vision tower takes pictures of any size, and its projector merges patches; basic-lite trains "
    "LLaVA's projector on pictures of one size",
)
