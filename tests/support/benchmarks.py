"""One real-looking sample of each benchmark's published file."""

from __future__ import annotations

import base64
import csv
import io
from pathlib import Path
from typing import Any

from PIL import Image

TEN = [{"answer": "net", "answer_confidence": "maybe", "answer_id": n} for n in range(1, 10)]
VQA_QUESTIONS = {
    "info": {"version": "2.0"},
    "task_type": "Open-Ended",
    "data_type": "mscoco",
    "license": {},
    "data_subtype": "val2014",
    "questions": [{"image_id": 262148, "question": "Where is he looking?", "question_id": 262148000}],
}
VQA_ANNOTATIONS = {
    "data_subtype": "val2014",
    "annotations": [
        {
            "question_type": "none of the above",
            "multiple_choice_answer": "down",
            "answers": [*TEN, {"answer": "down", "answer_confidence": "yes", "answer_id": 10}],
            "image_id": 262148,
            "answer_type": "other",
            "question_id": 262148000,
        }
    ],
}
TEXTVQA = {
    "dataset_type": "val",
    "dataset_name": "textvqa",
    "dataset_version": "0.5.1",
    "data": [
        {
            "question": "what is the brand of this camera?",
            "image_id": "003a8ae2ef43b901",
            "image_classes": ["Cassette deck"],
            "flickr_original_url": "https://example.org/o.jpg",
            "image_width": 1024,
            "question_tokens": ["what"],
            "answers": ["nous les gosses", "dakota", "clos culombu", *["dakota digital"] * 7],
            "question_id": 34602,
            "set_name": "val",
        }
    ],
}
GQA = {
    "201307251": {
        "semantic": [{"operation": "select", "dependencies": [], "argument": "scene"}],
        "question": "Is it overcast?",
        "imageId": "n161313",
        "isBalanced": True,
        "groups": {"global": None, "local": "13-weather"},
        "answer": "no",
        "types": {"detailed": "weatherVerify", "semantic": "global", "structural": "verify"},
        "fullAnswer": "No, it is clear.",
    },
    "201640614": {
        "question": "Who is wearing the dress?",
        "imageId": "n235859",
        "answer": "woman",
        "types": {"detailed": "relS", "semantic": "rel", "structural": "query"},
    },
}
POPE_PICTURE = "COCO_val2014_000000310196.jpg"
POPE = [
    {"question_id": 1, "image": POPE_PICTURE, "text": "Is there a snowboard in the image?", "label": "yes"},
    {"question_id": 2, "image": POPE_PICTURE, "text": "Is there a dining table in the image?", "label": "no"},
]
SCIENCEQA: dict[str, dict[str, Any]] = {
    "1": {
        "question": "Which of these states is farthest north?",
        "choices": ["West Virginia", "Louisiana", "Arizona", "Oklahoma"],
        "answer": 0,
        "hint": "",
        "image": "image.png",
        "task": "closed choice",
        "grade": "grade2",
        "subject": "social science",
        "topic": "geography",
        "split": "train",
    },
    "4": {
        "question": "Which figure of speech is used in this text?",
        "choices": ["chiasmus", "apostrophe"],
        "answer": 1,
        "hint": "Sing, O goddess, the anger of Achilles son of Peleus.",
        "image": None,
        "grade": "grade11",
        "subject": "language science",
        "split": "test",
    },
}
LLAVA_SCIENCEQA = [
    {
        "id": "5",
        "image": "5/image.png",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat is the name?\nContext: N/A\nA. Haiti\nB. Cuba"},
            {"from": "gpt", "value": "The answer is B."},
        ],
    }
]
CHARTQA = [{"imgname": "41699051005347.png", "query": "How many food item is shown in the bar graph?", "label": "14"}]
DOCVQA = {
    "dataset_name": "SP-DocVQA",
    "dataset_version": "1.0",
    "dataset_split": "val",
    "data": [
        {
            "questionId": 49153,
            "question": "What is the ‘actual’ value per 1000, during the year 1975?",
            "question_types": ["figure/diagram"],
            "image": "documents/pybv0228_81.png",
            "docId": 14465,
            "answers": ["0.28"],
            "data_split": "val",
        }
    ],
}


def picture(colour: str) -> str:
    Image.new("RGB", (4, 3), colour).save(out := io.BytesIO(), "PNG")
    return base64.b64encode(out.getvalue()).decode()


def mmbench(folder: Path, **changes: str) -> Path:
    """MMBench_DEV_EN.tsv with two questions, and a rotation of the first as older files have it."""
    columns = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "l2-category", "split"]
    asked, red = "Identify the question", picture("red")
    rows = [
        ["241", asked, "A table", "yes", "no", "maybe", "", "B", "identity", red, "logic", "dev"],
        ["252", "Which?", "nan", "left", "right", "", "", "A", "spatial", "241", "finegrained", "dev"],
        ["1000241", asked, "A table", "no", "maybe", "yes", "", "A", "identity", "241", "logic", "dev"],
    ]
    rows[0] = [changes.get(name, cell) for name, cell in zip(columns, rows[0], strict=True)]
    path = folder / "MMBench_DEV_EN.tsv"
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([columns, *rows])
    return path
