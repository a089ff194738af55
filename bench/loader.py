"""How fast data is read: samples beside bare Pillow, the index of a large list, JPEGs at a reduced size.

    python -m bench.loader                # 665,298 records, a gigabyte in a temporary folder; some minutes
    python -m bench.loader --out FILE     # keeps the figures

Bare Pillow opens a picture, converts, fits and resizes it, and makes an array of bytes. A loader's worker also finds
the file, looks at its orientation, tokenises the conversation and collates. Both are one thread's processor time, in
turn. The bytes become the processor's numbers where the model is, in training on the card; that is timed apart, as this
thread does it. Pictures and conversations are made here, in the sizes that LLaVA's have.
"""

import argparse
import json
import multiprocessing
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPImageProcessorPil, PreTrainedTokenizerFast

from basic_lite.console import quiet_libraries
from basic_lite.data.batches import Collator, SupervisedDataset
from basic_lite.data.chat import ChatFormat
from basic_lite.data.images import ImageRef, open_image
from basic_lite.data.json_source import JsonSource
from basic_lite.data.pixel_table import on_device
from basic_lite.data.pixels import DRAFT_SIDES, pixel_parts, pixels
from basic_lite.data.records import Records
from basic_lite.model.frontend import mean_colour
from basic_lite.recipe.schema import ImageFit, SourceSection
from bench import measure
from bench.beside_trl import resident_peak_bytes
from bench.tables import write_json

CPU = torch.device("cpu")
# Of COCO, mostly; GQA and Visual Genome have the same pictures.
SIZES = ((640, 480), (480, 640), (640, 427), (500, 375))
PHOTO = (4000, 3000)
GOAL_SHARE, GOAL_INDEX_S, GOAL_INDEX_GIB = 0.85, 60.0, 2.0
SPECIAL = ("<unk>", "<s>", "</s>", "<image>")


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    pictures: int
    side: int  # of the encoder's input
    seconds: float  # that each contender is timed
    records: int  # of the list that is indexed
    photo: tuple[int, int]


FULL = Size(64, 336, 12.0, 665_298, PHOTO)
TINY = Size(4, 32, 0.05, 300, (400, 300))


def picture(size: tuple[int, int], seed: int) -> Image.Image:
    """Noise with detail in all sizes, coarse detail the strongest, as photos have it."""
    draw, (width, height) = np.random.default_rng(seed), size
    out = np.full((height, width, 3), 128, np.float32)
    for cells, amplitude in ((8, 0.9), (32, 0.5), (128, 0.3), (512, 0.12), (2000, 0.1)):
        if cells < width:
            shape = (max(2, height * cells // width), cells, 3)
            noise = Image.fromarray(draw.integers(0, 256, shape, dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
            out += (np.asarray(noise, np.float32) - 128) * amplitude
    return Image.fromarray(out.clip(0, 255).astype(np.uint8))


def words() -> list[str]:
    draw = random.Random(0)
    return ["".join(draw.choices("abcdefghijklmnoprstuvwy", k=draw.randint(2, 8))) for _ in range(5000)]


def conversations(count: int, pictures: int | None = None) -> Iterator[dict[str, Any]]:
    """Records like those of LLaVA-Instruct's mix, some 1.7 kB each; ``pictures``: each one has one of so many."""
    draw, known = random.Random(1), words()

    def text(least: int, most: int) -> str:
        return " ".join(draw.choices(known, k=draw.randint(least, most)))

    for number in range(count):
        kind = draw.random()
        turns = []
        # A quarter describes at length, most answer many short questions, some have no picture.
        for _ in range(draw.randint(4, 14) if 0.24 <= kind < 0.94 else draw.randint(1, 4)):
            short = "\nAnswer the question using a single word or phrase."
            answer = text(1, 1) if 0.24 <= kind < 0.94 else text(30, 90)
            turns += [text(3, 9) + (short if 0.24 <= kind < 0.94 else "?"), answer]
        record: dict[str, Any] = {"id": f"{number:012d}"}
        if pictures or kind < 0.94:
            record["image"] = f"{number % pictures}.jpg" if pictures else f"coco/train2017/{number:012d}.jpg"
            turns[0] = f"<image>\n{turns[0]}"
        roles = ("human", "gpt")
        record["conversations"] = [{"from": roles[n % 2], "value": turn} for n, turn in enumerate(turns)]
        yield record


def write_list(path: Path, records: Iterator[dict[str, Any]]) -> None:
    """As LLaVA's lists are: indented, in one array."""
    with path.open("w", encoding="utf-8") as stream:
        for number, record in enumerate(records):
            stream.write((",\n" if number else "[\n") + json.dumps(record, indent=2))
        stream.write("\n]\n")


def tokenizer_of_words() -> PreTrainedTokenizerFast:
    """A token a word, so that nothing is downloaded."""
    names = dict.fromkeys([*SPECIAL, *words()])
    core = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    )


def processor(side: int) -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


def bare(path: Path, side: int, how: ImageFit, colour: tuple[int, int, int]) -> np.ndarray:
    """Pillow alone: a picture's bytes [side, side, 3]."""
    image = Image.open(path).convert("RGB")
    if how == "pad":
        whole = max(image.size)
        square = Image.new("RGB", (whole, whole), colour)
        square.paste(image, ((whole - image.width) // 2, (whole - image.height) // 2))
        image = square
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))


@dataclass
class Speed:
    """Milliseconds a picture, and bare Pillow's share of ours: the median of the rounds'."""

    how: ImageFit
    bare_ms: float
    pixels_ms: float
    sample_ms: float  # with its conversation, collated in fours
    lookup_ms: float  # bytes to the processor's numbers, in fours
    pixels_share: float
    sample_share: float


def reading(folder: Path, size: Size, how: ImageFit) -> Speed:
    """Time pictures and whole samples beside bare Pillow."""
    made, tokenizer = processor(size.side), tokenizer_of_words()
    records = Records([JsonSource(SourceSection(path=str(folder / "list.json")), Path("/"))])
    chat = ChatFormat("v1", tokenizer, SPECIAL.index("<image>"), (size.side // 14) ** 2)
    data = SupervisedDataset(records, chat, made, how, 2048, np.arange(size.pictures))
    collate, paths = Collator(0), [folder / f"{n}.jpg" for n in range(size.pictures)]
    refs = [ImageRef.of_file(path) for path in paths]
    colour = mean_colour(made)

    # Right first: bytes that Pillow gives are those that our numbers stand for.
    mean, std = (np.array(values)[:, None, None] for values in (made.image_mean, made.image_std))
    back = (pixels((refs[0],), made, how)[0].numpy() * std + mean) * 255
    assert np.abs(back - bare(paths[0], size.side, how, colour).transpose(2, 0, 1)).max() < 0.01, "other pixels"

    batch = collate([data[n] for n in range(4)])

    def samples() -> None:
        for start in range(0, size.pictures, 4):
            collate([data[n] for n in range(start, min(start + 4, size.pictures))])

    works = {
        "bare": lambda: [bare(path, size.side, how, colour) for path in paths],
        "pixels": lambda: [pixel_parts((ref,), made, how) for ref in refs],
        "sample": samples,
        "lookup": lambda: [on_device(batch, CPU) for _ in range(size.pictures // 4)],
    }
    taken = measure.take_turns(works, CPU, size.seconds)
    ms = {name: median(values) / size.pictures for name, values in taken.items()}
    shares = {name: median(a / b for a, b in zip(taken["bare"], taken[name], strict=True)) for name in taken}
    return Speed(how, ms["bare"], ms["pixels"], ms["sample"], ms["lookup"], shares["pixels"], shares["sample"])


@dataclass
class Index:
    """The index of a list."""

    records: int
    file_gib: float
    wall_s: float
    cpu_s: float
    peak_gib: float  # resident, with Python and torch; 0: only Linux says it


def index(path: Path, records: int) -> Index:
    """Read a list's places, and how long that takes in this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    count = len(Records([JsonSource(SourceSection(path=str(path)), Path("/"))]))
    assert count == records, f"{count} of {records} records were found"
    peak = resident_peak_bytes() / 2**30
    taken = time.perf_counter() - wall, time.process_time() - cpu
    return Index(count, path.stat().st_size / 2**30, *taken, peak)


def index_apart(path: Path, records: int) -> Index:
    """``index`` in a fresh process, so that the peak is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(index, (path, records))


@dataclass
class Draft:
    """A large JPEG decoded at a reduced size (`data.jpeg_draft`) beside the whole: time, and grey levels."""

    photo: tuple[int, int]
    decoded: tuple[int, int]
    side: int
    whole_ms: float
    draft_ms: float
    mean_difference: float
    largest_difference: float


def draft(path: Path, size: Size) -> Draft:
    made, ref = processor(size.side), ImageRef.of_file(path)
    scale = 255 * torch.tensor(made.image_std)[:, None, None]
    works = {
        name: (lambda on=on: pixels((ref,), made, "pad", draft=on)) for name, on in (("whole", False), ("draft", True))
    }
    difference = ((works["draft"]() - works["whole"]()) * scale).abs()
    assert works["draft"]().equal(works["draft"]())
    taken = measure.take_turns(works, CPU, size.seconds / 4)
    decoded = open_image(ref, least=DRAFT_SIDES * size.side).size
    times = (median(taken[name]) for name in works)
    return Draft(size.photo, decoded, size.side, *times, float(difference.mean()), float(difference.max()))


def run(size: Size, index: Callable[[Path, int], Index] = index_apart) -> dict[str, Any]:
    """Make the data, measure, print."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for number in range(size.pictures):
            picture(SIZES[number % len(SIZES)], number).save(folder / f"{number}.jpg", quality=90)
        picture(size.photo, 0).save(folder / "photo.jpg", quality=90)
        write_list(folder / "list.json", conversations(size.pictures, size.pictures))
        speeds = [reading(folder, size, how) for how in ("square", "pad")]
        drafted = draft(folder / "photo.jpg", size)
        write_list(folder / "large.json", conversations(size.records))
        indexed = index(folder / "large.json", size.records)
    for one in speeds:
        print(
            f"{one.how}: bare Pillow {one.bare_ms:.2f} ms a picture; ours {one.pixels_ms:.2f} "
            f"({one.pixels_share:.0%} of its speed), samples {one.sample_ms:.2f} ({one.sample_share:.0%}; goal "
            f"{GOAL_SHARE:.0%}); bytes to the processor's numbers {one.lookup_ms:.2f}"
        )
    print(
        f"index: {indexed.records:,} records, {indexed.file_gib:.2f} GiB, in {indexed.wall_s:.1f} s (goal "
        f"{GOAL_INDEX_S:g}; {indexed.cpu_s:.1f} of a processor), {indexed.peak_gib:.2f} GiB at the peak (goal "
        f"{GOAL_INDEX_GIB:g})"
    )
    print(
        f"jpeg_draft: {drafted.photo} as {drafted.decoded} for {drafted.side}: {drafted.whole_ms:.0f} → "
        f"{drafted.draft_ms:.0f} ms, {drafted.mean_difference:.2f} grey levels in the mean, "
        f"{drafted.largest_difference:.0f} at most"
    )
    return {"reading": [asdict(one) for one in speeds], "index": asdict(indexed), "jpeg_draft": asdict(drafted)}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.loader", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    quiet_libraries()
    torch.set_num_threads(1)
    about = measure.describe(CPU)
    found = run(FULL)
    if options.out is not None:
        write_json(options.out, {**about, **found})


if __name__ == "__main__":
    main()
