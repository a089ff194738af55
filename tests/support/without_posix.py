"""A process in which basic_lite finds what Windows has: run as a program, it trains, evaluates, chats and exports.

    python -X warn_default_encoding -m tests.support.without_posix FOLDER

The libraries keep this system; only what our own modules import is taken away or replaced. There an open file can't be
renamed or removed, and a text file must be opened with its encoding, which would be cp1252 by default. Triton and
liger-kernel can't be imported by anyone.
"""

from __future__ import annotations

import builtins
import importlib
import multiprocessing
import os
import pkgutil
import signal
import sys
import types
import warnings
from pathlib import Path
from typing import Any

MISSING = {"fcntl", "resource", "readline", "termios", "tty", "pty", "pwd", "grp", "posix", "syslog"}
# SIGTERM is there on Windows, but nothing sends it.
NO_SIGNALS = {name for name in dir(signal) if name.startswith("SIG") and name[3].isalpha()} - {"SIGINT", "SIGABRT"}
NO_CALLS = {
    "chown", "fork", "forkpty", "geteuid", "getgid", "getloadavg", "getpgid", "getuid", "killpg", "mkfifo", "nice",
    "sched_getaffinity", "setsid", "statvfs", "sysconf", "uname", "wait", "waitpid",
}  # fmt: skip
OURS = ("basic_lite", "basic_lite_kernels")
CHANGES = {"os.remove", "os.rename", "os.rmdir", "shutil.rmtree"}


class Without(types.ModuleType):
    """A module that lacks some names of another, and has others instead."""

    def __init__(self, of: types.ModuleType, missing: set[str], **instead: Any) -> None:
        super().__init__(of.__name__)
        self.__dict__.update(instead, _of=of, _missing=missing)

    def __getattr__(self, name: str) -> Any:
        if name in self._missing:
            raise AttributeError(f"Windows has no {self._of.__name__}.{name}")
        return getattr(self._of, name)


class WindowsProcess:
    """What psutil says of a process on Windows."""

    def memory_info(self) -> Any:
        return types.SimpleNamespace(peak_wset=2**30)


def is_ours(name: str) -> bool:
    return name.partition(".")[0] in OURS


def take_away() -> None:
    """From here on our modules are imported into another world."""
    import psutil

    others = {
        "os": Without(os, NO_CALLS, name="nt"),
        "signal": Without(signal, NO_SIGNALS),
        "sys": Without(sys, set(), platform="win32"),
        "psutil": Without(psutil, set(), Process=WindowsProcess),
    }
    real = builtins.__import__

    def imported(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        if globals is not None and is_ours(globals.get("__name__", "")):
            if name in MISSING:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            if name in others:
                return others[name]
        return real(name, globals, locals, fromlist, level)

    builtins.__import__ = imported
    warnings.filterwarnings("ignore", category=EncodingWarning)
    warnings.filterwarnings("error", category=EncodingWarning, module="basic_lite")
    sys.addaudithook(refuse_open_files)


def refuse_open_files(event: str, arguments: tuple[Any, ...]) -> None:
    """Windows renames and removes no file that is open, and no folder that has one in it."""
    if event not in CHANGES:
        return
    caller = sys._getframe(1)
    while caller.f_back is not None and caller.f_globals["__name__"] in ("pathlib", "shutil", "os", "contextlib"):
        caller = caller.f_back
    if not is_ours(caller.f_globals["__name__"]):
        return
    path = os.path.realpath(arguments[0])
    for number in os.listdir("/proc/self/fd"):
        try:
            held = os.readlink(f"/proc/self/fd/{number}")
        except OSError:  # the listing's own
            continue
        if held == path or held.startswith(path + os.sep):
            raise PermissionError(13, "The process cannot access the file because it is being used", held)


def import_everything() -> None:
    """All our modules, but for the kernels' own, which need Triton, and those of extras that aren't installed."""
    for package in map(importlib.import_module, OURS):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if module.name.endswith("__main__"):
                continue
            try:
                importlib.import_module(module.name)
            except ModuleNotFoundError as error:
                kernels = module.name in KERNELS and error.name == "triton"
                if not kernels and error.name not in ("gradio", "gguf", "lmms_eval"):
                    raise


KERNELS = {f"basic_lite_kernels.{name}" for name in ("attention_mass", "direction_loss", "row_scaling", "vocab_kl")}
KERNELS.add("basic_lite_kernels.triton_operations")


def command(*words: str | Path) -> None:
    """The command line in this process; any status but 0 ends it all."""
    from basic_lite.cli import main

    print("\n$", *words, flush=True)
    try:
        main([str(word) for word in words])
    except SystemExit as ended:
        if ended.code:
            raise


def check_the_imitation() -> None:
    """It would show nothing if our modules had this system's after all."""
    from basic_lite import console, signals
    from basic_lite.model import device

    assert signals.STOPPING == (signal.SIGINT,)
    assert console.command_line(["a b", "[q]"]) == '"a b" "[q]"'
    assert device.peak_memory_gib(device.torch.device("cpu")) == 1.0
    assert multiprocessing.get_start_method() == "spawn" and sys.flags.warn_default_encoding


def use(folder: Path) -> None:
    """The demo's paths, each as small as can be."""
    from basic_lite.demo import ASSETS
    from basic_lite.demo.world import write_world

    sizes = {"train_scenes": 16, "held_out_scenes": 4, "captions": 8, "questions": 16}
    world = write_world(folder / "world", 0, progress=print, **sizes, eval_questions=4, eval_captions=2)
    common = [f"model.vision={ASSETS / 'vision'}", f"model.llm={ASSETS / 'llm'}", f"output={folder / 'runs'}"]
    common += [f"data.train.image_dir={world.images}", "training.max_steps=2", "training.global_batch=4"]
    common += ["training.micro_batch=4", "training.save_every=1", "training.keep=1", "supervision.refinement_batches=8"]
    command("train", "demo_stage1", *common, "name=one", f"data.train.path={world.pretrain}", "data.workers=0")
    second = [*common, "name=two", f"data.train.path={world.instruct}", f"model.projector={folder / 'runs' / 'one'}"]
    command("train", "demo_stage2", *second, "data.workers=1")
    run = folder / "runs" / "two"
    command("eval", run, "--data", world.eval, "--image-dir", world.images, "--out", folder / "answers.json")
    picture = next(world.images.glob("*.png"))
    command("chat", run, picture, "what colour is the circle ?", "--max-new-tokens", "4")
    command("export", run, folder / "exported")
    photos = folder / "photos"
    command("demo", "--photos", photos)
    command("data", photos, "--recipe", "demo_photos", "--out", folder / "photos.yaml")
    command("runs", folder / "runs")
    command("clean", folder / "runs", "--yes")


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")

# A worker process comes here too: it starts empty, imports this file, and then what the job is made of.
sys.modules.update({"triton": None, "liger_kernel": None})  # type: ignore[dict-item]
for library in ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets"):
    importlib.import_module(library)
take_away()

if __name__ == "__main__":
    import_everything()
    check_the_imitation()
    if len(sys.argv) > 1:
        use(Path(sys.argv[1]))
