"""VQA accuracy: how many of ten people gave that answer."""

from collections.abc import Sequence

from basic_lite.scoring.metrics.vqa_text import said, textvqa_text

# With fewer answers no prediction could get the full score.
LEAST_ANSWERS = 4


def vqa(prediction: str, answers: Sequence[str], question: str) -> float:
    """The mean, over the people's answers, of min(1, others with the prediction / 3): VQAv2's measure.

    Antol et al. (2015), arXiv 1505.00468, section 3; texts are made alike as in `vqaEval.py` of GT-Vision-Lab/VQA
    (commit a013f00). That script leaves all texts as they are where the people say the same, so "Yes" is wrong where
    all ten say "yes". Published scores don't have that: LLaVA's `convert_vqav2_for_submission.py` makes answers alike
    before they are uploaded, and lmms-eval makes both sides alike always (since its commit 28ea9a1), as here.
    """
    return _left_out(said(prediction), [said(answer) for answer in answers])


def textvqa(prediction: str, answers: Sequence[str], question: str) -> float:
    """The same measure as TextVQA's evaluator (`m4c_evaluator.py`) takes it: both sides are made alike."""
    return _left_out(textvqa_text(prediction), [textvqa_text(answer) for answer in answers])


def _left_out(prediction: str, answers: Sequence[str]) -> float:
    same = answers.count(prediction)
    # Leaving out one of the ``same`` answers that agree leaves one less; leaving out another leaves them all.
    scores = same * min(1.0, (same - 1) / 3) + (len(answers) - same) * min(1.0, same / 3)
    return scores / len(answers)
