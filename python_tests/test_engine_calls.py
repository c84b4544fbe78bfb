"""What a call of the engine costs beside arithmetic: nothing allocated, no GIL, no memory that stays, no denormals."""

import ctypes
import gc
import os
import platform
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_cases import eval_model

import ctm_fast
from ctm_fast import engine as engines

HERE = Path(__file__).parent

COUNTS = """
import ctypes, sys
sys.path.insert(0, {tests!r})
import torch
from cell_cases import build
from engine_cases import eval_model
from front_cases import ENCODERS, attending
import ctm_fast
from ctm_fast.engine import Halt

library = ctypes.CDLL(None)
counters = [library.allocations_taken, library.locks_taken]
for taken, once, expected in zip(counters, [library.allocate_once, library.lock_once], [2, 1]):
    taken()
    once()
    assert taken() == expected, "the counter does not count"
CTMS = ["base", "base-energy", "base-unet", "sort", "qamnist", "rl", "encoder"]
CELLS = ["lstm", "split", "adaptive-lstm", "adaptive-rnn-digits"]

def encoder():
    layers = [torch.nn.Embedding(9, 4), torch.nn.GELU(), torch.nn.Linear(4, 12), ENCODERS["encoder"]()]
    return attending(torch.nn.Sequential(*layers), torch.randint(0, 9, (5, 5)))

def calls(name):
    if name in CELLS:
        model, x = build(name)
        engine = ctm_fast.Engine(model, x)
        return [lambda: engine(x), lambda: engine.step(x[0])]
    model, inputs = encoder() if name == "encoder" else eval_model(name, batch=5)
    engine = ctm_fast.Engine(model, inputs)
    halts = [None] if name == "rl" else [None, Halt(certainty=0.2)]
    return [lambda halt=halt: engine(*inputs, halt=halt) for halt in halts]

for name in CTMS + CELLS:
    each = calls(name)
    for taken in counters:
        taken()
    for call in each:
        for _ in range(3):
            call()
    allocations, locks = (taken() for taken in counters)
    assert allocations == 0, f"{{name}} allocated {{allocations}} times"
    assert locks == 0, f"{{name}} took {{locks}} locks"
"""


@pytest.mark.skipif(
    platform.machine() != "x86_64" or platform.system() != "Linux", reason="reads MXCSR, glibc"
)
def test_a_call_allocates_nothing_and_takes_no_lock(tmp_path):
    compiler = shutil.which("cc") or pytest.skip("needs a C compiler")
    libraries = []
    for name in ("engine_allocations", "engine_locks"):
        libraries.append(str(tmp_path / f"{name}.so"))
        command = [compiler, "-O1", "-shared", "-fPIC", "-o", libraries[-1], HERE / f"{name}.c"]
        subprocess.run(command, check=True)
    run = subprocess.run(
        [sys.executable, "-c", COUNTS.format(tests=str(HERE))],
        env={**os.environ, "LD_PRELOAD": " ".join(libraries)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr


def test_denormals_are_back_after_a_call():
    model, inputs = eval_model("sort")
    engine = ctm_fast.Engine(model, inputs)
    engine(*inputs)
    tiny = torch.full((4,), 1e-40)
    assert (tiny * 1.0 > 0).all()


WORKERS = """
import sys
sys.path.insert(0, {tests!r})
import torch
from engine_cases import eval_model
import ctm_fast

model, inputs = eval_model("sort", batch=4)
ctm_fast.Engine(model, inputs, threads=2)(*inputs)
torch.set_num_threads(2)
flushed = int((torch.full((400_000,), 1e-40) * 1.0 == 0).sum())
assert flushed == 0, flushed
"""


def test_denormals_are_back_on_threads_that_a_call_started():
    """In a process of its own, whose first parallel region is the engine's; torch's threads are the same ones."""
    run = subprocess.run(
        [sys.executable, "-c", WORKERS.format(tests=str(HERE))],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr


def test_the_gil_is_free_during_a_call():
    """Two threads call one engine: that the second one finds it at work means that the first let it run."""
    model, inputs = eval_model("base-wide", batch=16, iterations=60)
    engine = ctm_fast.Engine(model, inputs)
    features = engine._features(*inputs).tokens[0]
    refused = threading.Event()

    def call():
        for _ in range(200):
            if refused.is_set():
                return
            try:
                engine(features)
            except RuntimeError as error:
                if str(error).startswith("Engine: one call at a time must run"):
                    refused.set()

    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert refused.is_set()


def test_engines_in_several_threads_do_not_meet():
    model, inputs = eval_model("base-energy", batch=4)
    engines_ = [ctm_fast.Engine(model, inputs) for _ in range(4)]
    features = engines_[0]._features(*inputs).tokens[0]
    truth = engines_[0](features).predictions
    wrong = []

    def call(engine):
        for _ in range(50):
            if not np.array_equal(engine(features).predictions, truth):
                wrong.append(engine)

    threads = [threading.Thread(target=call, args=(engine,)) for engine in engines_]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def is_at_work(engine):
    """Whether a call of a model without state runs: there is nothing else that this could change."""
    try:
        engine._native.set_state(0, None, None)
    except RuntimeError:
        return True
    return False


def test_engines_in_two_threads_do_not_wait_for_each_other():
    """The whole call of one happens while the only call of the other, which began before, goes on."""
    model, inputs = eval_model("base-wide", batch=16, iterations=100)
    slow = ctm_fast.Engine(model, inputs)
    tokens = slow._features(*inputs).tokens[0]
    small, x = eval_model("sort", batch=1)
    quick, numbers = ctm_fast.Engine(small, x), x[0].numpy()

    def quick_call_within_a_slow_one():
        thread = threading.Thread(target=slow, args=(tokens,))
        thread.start()
        while not is_at_work(slow) and thread.is_alive():
            pass
        quick(numbers)
        within = is_at_work(slow)
        thread.join()
        return within

    assert any(quick_call_within_a_slow_one() for _ in range(20))


class MallocInfo(ctypes.Structure):
    """What glibc's mallinfo2 returns."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks",
                     "keepcost")
    ]  # fmt: skip


def live_bytes():
    """Bytes that the C library has handed out."""
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = MallocInfo
    gc.collect()
    found = mallinfo2()
    return found.uordblks + found.hblkhd


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc")
def test_thousands_of_engines_leave_no_memory(tmp_path):
    model, inputs = eval_model("base-energy")
    engine = ctm_fast.Engine(model, inputs)
    features = engine._features(*inputs).tokens[0]
    engine.save(tmp_path / "engine")

    def cycles(count):
        for _ in range(count):
            engines.load(tmp_path / "engine")(features)

    cycles(100)
    before = live_bytes()
    cycles(3000)
    assert live_bytes() - before < 100_000
