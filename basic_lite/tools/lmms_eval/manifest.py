"""What lmms-eval finds by the entry point of the group `lmms_eval.models`."""

from lmms_eval.models.registry_v2 import ModelManifest


def manifest() -> ModelManifest:
    """The model's name and its class.

    lmms-eval has two kinds of models. A "simple" one gets a text and pictures, a "chat" one a conversation whose parts
    are in any order. LLaVA is trained with its pictures in front, and lmms-eval asks for likelihoods only simple ones.
    """
    return ModelManifest(model_id="basic_lite", simple_class_path="basic_lite.tools.lmms_eval.model.BasicLite")
