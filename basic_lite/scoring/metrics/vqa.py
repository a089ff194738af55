"""VQA accuracy: how many of ten people gave that answer."""

from collections.abc import Sequence

from basic_lite.scoring.metrics.vqa_text import said, textvqa_text, without_punctuation

# With fewer answers no prediction could get the full score.
LEAST_ANSWERS = 4


def vqa(prediction: str, answers: Sequence[str], question: str) -> float:
    """The mean, over the people's answers, of min(1, others with the prediction / 3): VQAv2's measure.

    Antol et al. (2015), arXiv 1505.00468, section 3; worked out as in `vqaEval.py` of GT-Vision-Lab/VQA. That changes
    the people's answers less than the model's: only their punctuation, and only where they aren't all the same.
    """
    given = [without_punctuation(answer) for answer in answers] if len(set(answers)) > 1 else list(answers)
    return _left_out(said(prediction), given)


def textvqa(prediction: str, answers: Sequence[str], question: str) -> float:
    """The same measure as TextVQA's evaluator (`m4c_evaluator.py`) takes it: both sides are made alike."""
    return _left_out(textvqa_text(prediction), [textvqa_text(answer) for answer in answers])


def _left_out(prediction: str, answers: Sequence[str]) -> float:
    same = answers.count(prediction)
    # Leaving out one of the ``same`` answers that agree leaves one less; leaving out another leaves them all.
    scores = same * min(1.0, (same - 1) / 3) + (len(answers) - same) * min(1.0, same / 3)
    return scores / len(answers)
