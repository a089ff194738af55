"""`basic-lite check` on as many records as LLaVA-1.5's list has: processor seconds and memory.

    python -m bench.check_data                    # a gigabyte in a temporary folder; some minutes
    python -m bench.check_data --records 20000    # fewer

Conversations are made here in LLaVA's lengths, of words that SmolLM2's tokenizer knows; its real tokenizer counts them,
with the 576 tokens an image of LLaVA-1.5. The list has no pictures: these are timed apart, on a few made here in
COCO's sizes, each read as `check` reads it.
"""

import argparse
import json
import multiprocessing
import random
import resource
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from rich.console import Console
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPVisionConfig

from basic_lite.console import quiet_libraries
from basic_lite.data.images import ImageRef
from basic_lite.tools.check.command import check
from basic_lite.tools.check.fingerprint import HASH_BYTES, THUMB_SIDE, Fingerprint, fingerprint
from basic_lite.tools.check.survey import Pictures, Place
from bench import loader

RECORDS, PICTURES, TIMED = 665_298, 335_000, 48
GIB = 2**30


@dataclass(frozen=True)
class Cost:
    """What a check takes.

    Attributes:
        cpu_s: processor seconds of this process and of those it starts.
        peak_gib: the most memory of all of them together; what they share is counted once.
        before_gib: of it, what Python and its libraries have before the check.
    """

    records: int
    file_gib: float
    cpu_s: float
    wall_s: float
    peak_gib: float
    before_gib: float


def write_model(folder: Path, llm: Path) -> list[str]:
    """The vision tower's configuration, without weights, and the keys of a recipe with it and the language model."""
    CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336,
        patch_size=14,
    ).save_pretrained(folder)  # fmt: skip
    side = {"height": 336, "width": 336}
    CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size=side).save_pretrained(folder)
    return ["model.base=null", f"model.vision={folder}", f"model.llm={llm}", "data.max_length=2048"]


def write_records(path: Path, count: int, llm: Path) -> None:
    """LLaVA's lengths, in words that are common in English: the first 5,000 of the tokenizer that stand alone."""
    vocabulary = AutoTokenizer.from_pretrained(llm).get_vocab()
    whole = sorted((number, text[1:]) for text, number in vocabulary.items() if text[:1] == "Ġ" and text[1:].islower())
    known = [text for _, text in whole if text.isascii() and text.isalpha()][:5000]
    own = dict(zip(loader.words(), random.Random(0).sample(known, len(known)), strict=False))

    def in_english(turn: dict[str, str]) -> dict[str, str]:
        words = turn["value"].removeprefix("<image>\n").split(" ")
        return {**turn, "value": " ".join(own.get(word, word) for word in words)}

    def records():  # type: ignore[no-untyped-def]
        for record in loader.conversations(count):
            record.pop("image", None)
            yield {**record, "conversations": [in_english(turn) for turn in record["conversations"]]}

    loader.write_list(path, records())


def cost_of_texts(path: Path, keys: list[str], records: int) -> Cost:
    """Check a list, and watch it."""
    torch.set_num_threads(1)
    before = psutil.Process().memory_full_info().pss
    watch = _Memory()
    start, cpu = time.perf_counter(), _cpu_s()
    with watch:
        check(path, base="my_photos", overrides=keys, out=path.with_suffix(".html"), console=Console(highlight=False))
    taken = time.perf_counter() - start, _cpu_s() - cpu
    return Cost(records, path.stat().st_size / GIB, taken[1], taken[0], watch.most / GIB, before / GIB)


class _Memory:
    """The most that this process and those it starts have held together, looked at every two seconds."""

    def __init__(self) -> None:
        self.most = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        own, ended = psutil.Process(), False
        while not ended:
            held = 0
            for one in (own, *own.children(recursive=True)):
                try:
                    held += one.memory_full_info().pss
                except psutil.Error:  # it has just ended
                    continue
            self.most = max(self.most, held)
            ended = self._stop.wait(2.0)


def _cpu_s() -> float:
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, who))


@dataclass(frozen=True)
class Pictured:
    """The pass over pictures: of each, and of all that LLaVA-1.5's list has, by scaling and with made fingerprints."""

    picture_ms: float
    pictures: int
    reading_cpu_s: float  # scaled
    grouping_cpu_s: float
    held_gib: float
    peak_gib: float  # of grouping them


def cost_of_pictures(folder: Path, timed: int, pictures: int) -> Pictured:
    """Read some pictures, and group as many fingerprints as there would be."""
    for number in range(timed):
        loader.picture(loader.SIZES[number % len(loader.SIZES)], number).save(folder / f"{number}.jpg", quality=90)
    refs = [ImageRef.of_file(folder / f"{number}.jpg") for number in range(timed)]
    start = time.process_time()
    for ref in refs:
        fingerprint(ref)
    each = (time.process_time() - start) / timed
    before = psutil.Process().memory_full_info().uss
    draw, found = np.random.default_rng(0), Pictures()
    for number in range(pictures):
        found.numbers[draw.integers(2**62).item()] = number
        found.places.append(Place(0, number, 0))
        hashes, thumb = draw.integers(0, 256, HASH_BYTES, np.uint8), draw.integers(0, 256, 3 * THUMB_SIDE**2, np.uint8)
        found.keep(number, Fingerprint(draw.bytes(16), hashes, thumb, 640, 480, 255))
    held = psutil.Process().memory_full_info().uss - before
    start, watch = time.process_time(), _Memory()
    with watch:
        found.groups()
    grouping = time.process_time() - start
    return Pictured(each * 1000, pictures, each * pictures, grouping, held / GIB, watch.most / GIB)


def run(records: int, llm: Path, timed: int = TIMED, pictures: int = PICTURES) -> dict[str, object]:
    """Make the data, measure, print."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        keys = write_model(folder / "vision", llm)
        write_records(folder / "list.json", records, llm)
        context = multiprocessing.get_context("spawn")
        with context.Pool(1, maxtasksperchild=1) as pool:
            seen = pool.apply(cost_of_pictures, (folder, timed, pictures))
        # A pool's processes may start none of their own.
        with context.Manager() as manager:
            found = manager.list()
            worker = context.Process(target=_into, args=(found, folder / "list.json", keys, records))
            worker.start()
            worker.join()
            (texts,) = found
    print(
        f"texts: {texts.records:,} records, {texts.file_gib:.2f} GiB, in {texts.cpu_s:.0f} processor seconds "
        f"({texts.wall_s:.0f} by the clock), {texts.peak_gib:.2f} GiB at the peak, {texts.before_gib:.2f} of them "
        "before the check"
    )
    print(
        f"pictures: {seen.picture_ms:.1f} ms of a processor each, so {seen.reading_cpu_s:.0f} s for {seen.pictures:,}; "
        f"{seen.grouping_cpu_s:.0f} s to group them, {seen.held_gib:.2f} GiB held"
    )
    return {"texts": asdict(texts), "pictures": asdict(seen)}


def _into(found, path: Path, keys: list[str], records: int) -> None:  # type: ignore[no-untyped-def]
    found.append(cost_of_texts(path, keys, records))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.check_data", description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=RECORDS)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    quiet_libraries()
    from bench.world.llms import smollm2

    found = run(options.records, smollm2())
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
