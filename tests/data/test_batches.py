"""The audit, the dataset, the order and the batches."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from basic_lite.data.batches import Collator, SupervisedDataset
from basic_lite.data.chat import ChatFormat
from basic_lite.data.check import DataReport, check_data
from basic_lite.data.images import open_image
from basic_lite.data.pixel_table import TABLE, on_device, processed
from basic_lite.data.pixels import fit
from basic_lite.data.problems import BadImage
from basic_lite.data.records import Records
from basic_lite.data.sampler import GroupedSampler
from basic_lite.data.sources import load_records
from basic_lite.errors import UserError
from basic_lite.recipe.schema import DataSection, SourceSection
from tests.support.data import N, image_id, processor, tokenizer, write_image, write_json
from tests.support.rights import without_roots_rights


def talk(question: str = "<image>\nwhat?", answer: str = "a ring") -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


ROWS: list[Any] = [
    {"id": "good", "image": "a.png", "conversations": talk()},
    {"id": "text", "conversations": talk("hello")},
    {"id": "gone", "image": "gone.png", "conversations": talk()},
    {"id": "away", "image": "../a.png", "conversations": talk()},
    {"id": "cut", "image": "cut.png", "conversations": talk()},
    {"id": "mute", "image": "a.png", "conversations": talk()[:1]},
    {"id": "many", "image": ["a.png"] * 9, "conversations": talk("q")},
    {"id": "long", "conversations": talk("hi", "things " * 190)},
    "nonsense",
    {"id": "two", "image": ["b.png", "a.png"], "conversations": talk("<image> or <image>?", "b")},
]


def setup(tmp_path: Path, rows: list[Any] = ROWS, **keys: Any) -> tuple[Records, ChatFormat, DataSection]:
    for seed, name in enumerate(["a.png", "b.png"]):
        write_image(tmp_path / "pics" / name, (10, 10), seed)
    (tmp_path / "pics" / "cut.png").write_bytes((tmp_path / "pics" / "a.png").read_bytes()[:60])
    write_json(tmp_path / "data.json", rows)
    source = SourceSection(path="data.json", image_dir="pics")
    tok = tokenizer("byte_bos")
    section = DataSection(train=source, template="v1", max_length=200, **keys)
    tok_chat = ChatFormat(section.template, tok, image_id(tok), 25)
    return load_records(source, root=tmp_path), tok_chat, section


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    records, chat, section = setup(tmp_path)
    with pytest.raises(UserError) as caught:
        check_data(records, chat, section)
    text = str(caught.value)
    counts = "bad record: 1, no supervised token: 1, too long: 1, unreadable picture: 3"
    assert text.startswith(f"6 of 10 records can't be used ({counts}):")
    for part in ["record 3 (id gone)", "record 4 (id away)", "record 5 (id cut)", "record 6 (id mute)",
                 "record 7 (id many)", "record 9: ", "data.bad_records=drop",
                 "data.too_long=drop"]:  # fmt: skip
        assert part in text, part
    assert "id good" not in text
    assert "id long" not in text


def test_policies(tmp_path: Path) -> None:
    records, chat, section = setup(tmp_path, bad_records="drop")
    with pytest.raises(UserError) as caught:
        check_data(records, chat, section)
    assert "1 of 10 records can't be used (too long: 1)" in str(caught.value)
    assert "bad_records" not in str(caught.value)
    records, chat, section = setup(tmp_path, too_long="drop")
    with pytest.raises(UserError, match="5 of 10 records"):
        check_data(records, chat, section)
    _, _, section = setup(tmp_path, too_long="drop", bad_records="drop")
    seen: list[tuple[str, int, int]] = []
    report = check_data(records, chat, section, progress=lambda *counted: seen.append(counted))
    assert seen == [("records", 10, 10), ("pictures", 3, 3)]  # a.png, b.png, cut.png
    assert report.kept.tolist() == [0, 1, 7, 9]
    assert report.has_image.tolist() == [True, False, False, True]
    assert report.n_images.tolist() == [1, 0, 0, 2]
    assert [problem.place.split()[2] for problem in report.problems] == ["3", "4", "5", "6", "7", "9"]
    assert report.cut.tolist()[2] > 0
    assert report.lengths.tolist()[2] == 200
    summary = "\n".join(report.summary())
    assert "4 of 10 records used: 2 with images (3), 2 text only" in summary
    assert "6 records dropped" in summary
    dataset = SupervisedDataset(records, chat, processor(), "pad", 200, report.kept)
    for n, sample in enumerate(dataset[i] for i in range(len(dataset))):
        assert len(sample["input_ids"]) == report.lengths[n]
        assert sum(label != -100 for label in sample["labels"]) == report.supervised[n]
        assert len(sample.get("pixel_values", ())) == report.n_images[n]


def test_processes_find_the_same(tmp_path: Path) -> None:
    records, chat, section = setup(tmp_path, ROWS * 120, too_long="drop", bad_records="drop")
    one, two = (check_data(records, chat, section, processes=n) for n in (1, 2))
    assert [(type(p), str(p)) for p in one.problems] == [(type(p), str(p)) for p in two.problems]
    for name in ("kept", "lengths", "supervised", "n_images", "cut"):
        assert (getattr(one, name) == getattr(two, name)).all()
    assert one.fingerprint == two.fingerprint and one.broken == two.broken
    whole, refusing = tmp_path / "runs" / "all.txt", section.model_copy(update={"bad_records": "refuse"})
    with pytest.raises(
        UserError, match=r"(?s)and 119 more like it: .*bad_records=drop. The whole list is in .*all\.txt"
    ):
        check_data(records, chat, refusing, whole_list=whole)
    refused = [str(problem) for problem in one.problems if problem.kind != "too long"]
    assert whole.read_text(encoding="utf-8").splitlines() == refused
    with pytest.raises(UserError, match=r"(?s)and 119 more .* The whole list can't be written to .*all\.txt"):
        check_data(records, chat, refusing, whole_list=whole / "all.txt")
    check_data(records, chat, section, whole_list=whole)
    assert not whole.exists()  # nothing is refused any more


def test_data_is_checked_where_nothing_can_be_written(tmp_path: Path) -> None:
    records, chat, section = setup(tmp_path, ROWS[:1])
    whole = tmp_path / "runs" / "all.txt"
    whole.parent.mkdir()
    whole.touch()
    with without_roots_rights():
        whole.parent.chmod(0o555)
        check_data(records, chat, section, whole_list=whole)
        whole.parent.chmod(0o755)
    assert whole.exists()


def test_a_wrong_folder_of_pictures_is_one_problem(tmp_path: Path) -> None:
    rows = [{"id": n, "image": f"photo {n}.png", "conversations": talk()} for n in range(40)]
    records, chat, section = setup(tmp_path, rows)
    with pytest.raises(UserError) as caught:
        check_data(records, chat, section)
    head, first, more, mend = str(caught.value).split("\n")
    assert head == "40 of 40 records can't be used (unreadable picture: 40):" and "correct image_dir" in first
    assert more.startswith("    and 39 more like it: data.json, record 2 (id 1), ") and "bad_records=drop" in mend
    records, chat, section = setup(tmp_path, rows[:5])
    with pytest.raises(UserError) as caught:
        check_data(records, chat, section)
    assert str(caught.value).count("does not exist") == 5  # a few are named one by one


def test_nothing_left(tmp_path: Path) -> None:
    records, chat, section = setup(tmp_path, ROWS[2:4], bad_records="drop")
    with pytest.raises(UserError, match=r"none of the 2 records can be used:\n.*record 1 \(id gone\)"):
        check_data(records, chat, section)


@pytest.mark.parametrize("in_worker", [False, True])
def test_a_broken_image_at_load_time_is_named(tmp_path: Path, in_worker: bool) -> None:
    records, chat, section = setup(tmp_path, [ROWS[4]], check_images="exists")
    report = check_data(records, chat, section)
    dataset = SupervisedDataset(records, chat, processor(), "pad", 200, report.kept)

    def fetch() -> None:
        try:
            dataset[0]
        except BadImage:
            if not in_worker:
                raise
            # How a data loader's worker process hands an exception to the main one.
            torch._utils.ExceptionWrapper(where="in DataLoader worker process 0").reraise()

    with pytest.raises(BadImage) as caught:
        fetch()
    assert str(caught.value).startswith("data.json, record 1 (id cut): image 'cut.png' can't be decoded")
    assert "Traceback" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_dataset_pickles_and_gives_the_same(tmp_path: Path) -> None:
    records, chat, _ = setup(tmp_path, [ROWS[0], ROWS[1], ROWS[9]])
    dataset = SupervisedDataset(records, chat, processor(), "square", 200, np.arange(len(records)))
    before = [dataset[i] for i in range(3)]
    again = pickle.loads(pickle.dumps((dataset, Collator(5, "left"))))
    after = [again[0][i] for i in range(3)]
    assert "pixel_values" not in before[1]
    for one, two in zip(before, after, strict=True):
        assert one["input_ids"] == two["input_ids"]
        assert torch.equal(one.get("pixel_values", torch.zeros(0)), two.get("pixel_values", torch.zeros(0)))
    # Images come in the order of their placeholders: b.png, then a.png, which is sample 0's.
    assert before[2]["pixel_values"].shape[0] == 2
    assert torch.equal(before[2]["pixel_values"][1], before[0]["pixel_values"][0])


def test_pictures_travel_as_bytes_and_become_the_processors_values(tmp_path: Path) -> None:
    """A quarter of the numbers' size on the way, and the same numbers on the device."""
    records, chat, _ = setup(tmp_path, [ROWS[0], ROWS[1], ROWS[9]])
    dataset = SupervisedDataset(records, chat, processor(), "square", 200, np.arange(len(records)))
    batch = Collator(5)([dataset[i] for i in range(3)])
    assert batch["pixel_values"].dtype == torch.uint8 and batch["pixel_values"].shape[3] == 3
    there = on_device(batch, torch.device("cpu"))
    assert set(there) == {"input_ids", "attention_mask", "labels", "pixel_values"}
    whole = [processed(fit(open_image(image), "square", processor()), processor())
             for i in (0, 2) for image in dataset.record(i).images]  # fmt: skip
    assert len(whole) == 3 and there["pixel_values"].equal(torch.stack(whole))
    assert TABLE not in Collator(5)([dataset[1]])


@pytest.mark.parametrize("side", ["right", "left"])
def test_collator(side: Any) -> None:
    def images(*values: float) -> torch.Tensor:
        return torch.stack([torch.full((3, 2, 2), value) for value in values])

    samples: list[dict[str, Any]] = [
        {"input_ids": [1, 7, 7, 2], "labels": [-100, -100, -100, 2], "pixel_values": images(1.0, 2.0)},
        {"input_ids": [1, 3], "labels": [-100, 3]},
        {"input_ids": [1, 7, 4], "labels": [-100, -100, 4], "pixel_values": images(3.0)},
    ]
    batch = Collator(9, side)(samples)
    assert set(batch) == {"input_ids", "attention_mask", "labels", "pixel_values"}
    expected = {
        "right": ([[1, 7, 7, 2], [1, 3, 9, 9], [1, 7, 4, 9]], [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]),
        "left": ([[1, 7, 7, 2], [9, 9, 1, 3], [9, 1, 7, 4]], [[1, 1, 1, 1], [0, 0, 1, 1], [0, 1, 1, 1]]),
    }[side]
    assert batch["input_ids"].tolist() == expected[0]
    assert batch["attention_mask"].tolist() == expected[1]
    assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()
    assert batch["labels"][batch["labels"] != -100].tolist() == [2, 3, 4]
    assert batch["pixel_values"][:, 0, 0, 0].tolist() == [1.0, 2.0, 3.0]
    assert batch["pixel_values"].dtype == torch.float32
    assert all(batch[key].dtype == torch.int64 for key in ("input_ids", "attention_mask", "labels"))
    assert "pixel_values" not in Collator(9, side)(samples[1:2])
    prompts = Collator(9, side)([{"input_ids": [1]}, {"input_ids": [1, 2]}])
    assert set(prompts) == {"input_ids", "attention_mask"}
    with pytest.raises(UserError, match="different sizes"):
        Collator(9, side)([samples[0], {**samples[2], "pixel_values": torch.zeros(1, 3, 4, 4)}])


def world(n: int = 1000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    has_image = rng.random(n) < 0.7
    return rng.integers(10, 200, n) + has_image * 300, has_image


def padding(order: list[int], lengths: np.ndarray, size: int) -> int:
    groups = [lengths[order[i : i + size]] for i in range(0, len(order), size)]
    return int(sum(len(group) * group.max() - group.sum() for group in groups))


@pytest.mark.parametrize("mode", ["modality_length", "length", "none"])
def test_order_is_a_permutation_from_seed_and_epoch(mode: Any) -> None:
    lengths, has_image = world()
    keys: dict[str, Any] = {"global_batch": 16, "mode": mode, "seed": 3}
    sampler = GroupedSampler(lengths, has_image, **keys)
    before = torch.get_rng_state()
    first = sampler.order(0).tolist()
    assert sorted(first) == list(range(1000))
    assert len(sampler) == 1000
    # Whatever was iterated before, or drawn elsewhere, an epoch has its one order.
    second = sampler.order(1).tolist()
    assert second != first
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert sampler.order(0).tolist() == first
    assert torch.equal(torch.get_rng_state(), state)
    torch.set_rng_state(before)
    assert GroupedSampler(lengths, has_image, **keys).order(0).tolist() == first
    assert GroupedSampler(lengths, has_image, **{**keys, "seed": 4}).order(0).tolist() != first
    assert pickle.loads(pickle.dumps(sampler)).order(0).tolist() == first


def test_like_lengths_and_one_modality() -> None:
    lengths, has_image = world()
    plain = GroupedSampler(lengths, has_image, global_batch=16, mode="none").order(0).tolist()
    by_length = GroupedSampler(lengths, has_image, global_batch=16, mode="length").order(0).tolist()
    both = GroupedSampler(lengths, has_image, global_batch=16).order(0).tolist()
    for size in (4, 16):
        assert padding(by_length, lengths, size) < 0.3 * padding(plain, lengths, size)
        assert padding(both, lengths, size) < 0.3 * padding(plain, lengths, size)
        mixed = [i for i in range(0, 1000, size) if len(set(has_image[both[i : i + size]])) == 2]
        # At most one, made of what is left over of both.
        assert len(mixed) <= 1
    for order in (by_length, both, plain):
        assert lengths[order[:16]].max() == lengths.max()


def test_a_few_long_texts_among_pictures_come_first() -> None:
    """They fill no global batch, so they were left over for the last step of the epoch."""
    lengths, has_image = np.array([9] * 40 + [50, 30]), np.array([True] * 40 + [False] * 2)
    sampler = GroupedSampler(lengths, has_image, global_batch=16)
    for epoch in range(5):
        order = sampler.order(epoch)
        assert sorted(order) == list(range(42))
        assert order[14:16].tolist() == [40, 41] and has_image[order[:14]].all() and has_image[order[16:]].all()


@given(
    n=st.integers(0, 70),
    share=st.floats(0, 1),
    accumulation=st.sampled_from([1, 2, 4, 8]),
    micro=st.sampled_from([1, 2, 4]),
    mode=st.sampled_from(["modality_length", "length", "none"]),
    seed=st.integers(0, 5),
)
def test_any_order(n: int, share: float, accumulation: int, micro: int, mode: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths, has_image = rng.integers(1, 50, n), rng.random(n) < share
    size = accumulation * micro
    order = GroupedSampler(lengths, has_image, global_batch=size, mode=mode, seed=seed).order(0).tolist()
    assert sorted(order) == list(range(n))
    if mode == "modality_length":
        mixed = sum(len(set(has_image[order[i : i + micro]])) == 2 for i in range(0, n, micro))
        assert mixed <= 1
        steps = [set(has_image[order[i : i + size]]) for i in range(0, n, size)]
        # Of whole optimizer steps, too, at most one holds both.
        assert sum(len(step) == 2 for step in steps) <= 1
    if n >= size:
        assert lengths[order[:size]].max() == lengths.max()  # what needs most memory is tried first


def test_sampler_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="lengths"):
        GroupedSampler(np.array([1, 2]), np.array([True]), global_batch=8)
    assert N == 5


def test_one_record_is_no_several() -> None:
    """It was "1 records dropped"."""
    one = np.array([1])
    report = DataReport(2, one, one, one, one, one, problems=[BadImage("it is bad", "mend it", "a.json, record 2")])
    said = "\n".join(report.summary())
    assert "\n1 record dropped:\n" in said
    assert "\n1 record had text cut off at the end to fit into data.max_length (1 token)\n" in said
