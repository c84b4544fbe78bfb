"""The check on a copy: it leaves the model alone, also between threads, and sees what a fork does differently."""

import functools
import threading

import pytest
import torch
from foreign_cases import VARIANTS, agree, assert_close, build, copies, pair, tensors
from foreign_models import ThoughtMachine
from torch import nn

import ctm_fast

published = ThoughtMachine.forward


@pytest.mark.parametrize("track", [False, True], ids=["plain", "tracked"])
@pytest.mark.parametrize("name", VARIANTS)
def test_the_model_is_not_touched_while_it_is_checked(name, track):
    model, inputs = build(name, dropout=0.2)
    forward_of, seen = type(model).forward, []

    @functools.wraps(forward_of)
    def watched(self, *arguments):
        seen.append(self)
        changed = [key for part, own in before.items() for key in own if vars(part)[key] is not own[key]]
        assert self is not model and changed == []
        return forward_of(self, *arguments)

    model.__class__ = type("Watched", (type(model),), {"forward": watched})
    ctm_fast.accelerate(model).eval()
    before = {part: dict(vars(part)) for part in model.modules()}
    state = torch.get_rng_state()
    with torch.no_grad():
        model(*inputs, track)
    assert len(seen) == 1 and torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("workers", [2, 4])
def test_first_calls_from_several_threads(workers, caplog):
    original, inputs = build("base", dropout=0.3, iterations=12)
    models = [ctm_fast.accelerate(each) for each in copies(original.eval(), 3)]
    expected = tensors(original(*inputs))
    for fast in models:
        found, together = [], threading.Barrier(workers)

        def work(fast=fast, found=found, together=together):
            together.wait()
            with torch.no_grad():
                found.append(tensors(fast(*inputs)))

        threads = [threading.Thread(target=work) for _ in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == workers
        for each in found:
            assert_close(each, expected)
        assert fast.iterations == 12 and fast.synapses[0].p == 0.3
    assert caplog.messages == []


def test_a_model_that_has_been_trained_is_checked_too(caplog):
    original, fast, inputs = pair("base")
    fast(*inputs)[0].sum().backward()
    assert fast.kv_features.grad_fn is not None  # what no deep copy takes
    assert_close(fast.eval()(*inputs), original.eval()(*inputs))
    assert caplog.messages == []


def test_a_model_that_cannot_be_copied_keeps_its_forward(caplog):
    model, inputs = build("base")
    original = copies(model, 1)[0]
    model.lock = threading.Lock()
    ctm_fast.accelerate(model)
    for _ in range(2):
        assert_close(model(*inputs), original(*inputs), 0.0)
    assert len(caplog.messages) == 1
    assert (
        "keeps its own forward, it cannot be checked on a copy: TypeError: cannot pickle"
        in caplog.messages[0]
    )


class Whole(ThoughtMachine):
    """Runs on batches of three alone."""

    def forward(self, x, track=False):
        if len(x) != 3:
            raise ValueError(f"batch must be 3, got {len(x)}")
        return published(self, x, track)


class Noisy(ThoughtMachine):
    """Its features have a state of the batch's size."""

    def compute_features(self, x):
        if not hasattr(self, "noise"):
            self.noise = torch.full((3, 1), 0.5)
        return super().compute_features(x * self.noise)


@pytest.mark.parametrize("cls", [Whole, Noisy])
def test_code_that_needs_its_batch_is_checked_on_it(cls, caplog):
    model, inputs = build("base")
    model.__class__ = cls
    original, fast = copies(model, 2)
    agree(original, ctm_fast.accelerate(fast), inputs)
    assert caplog.messages == []


def test_a_wrong_first_call_decides_nothing(caplog, monkeypatch):
    original, fast, (x,) = pair("sort")
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        fast(x[:, 1:])
    expected = original(x)
    fast(x)
    monkeypatch.delattr(ThoughtMachine, "think")
    assert_close(fast(x), expected)
    assert caplog.messages == []


class Late(ThoughtMachine):
    """Changes its mind ``after`` some ticks."""

    after = 11

    def forward(self, x, track=False):
        predictions, *rest = published(self, x, track)
        late = torch.arange(self.iterations) > self.after
        return torch.where(late, 0.5 * predictions, predictions), *rest


@pytest.mark.parametrize("after", [5, 6, 18])
def test_what_changes_after_many_ticks_is_seen(after, caplog):
    model, inputs = build("base", iterations=20)  # its memory is 5 long
    model.__class__, model.after = Late, after
    original, fast = copies(model, 2)
    agree(original, ctm_fast.accelerate(fast), inputs, 0.0)
    assert "computes something else" in caplog.messages[0]


class Talkative(ThoughtMachine):
    """Returns more when it tracks."""

    def forward(self, x, track=False):
        found = published(self, x, track)
        return (*found, x.sum()) if track else found


@pytest.mark.parametrize("first", [False, True], ids=["plain-first", "tracked-first"])
def test_track_is_checked_at_its_first_use(first, caplog):
    model, inputs = build("base")
    model.__class__ = Talkative
    original, fast = copies(model.eval(), 2)
    ctm_fast.accelerate(fast)
    for track in (first, not first, first, not first):
        assert_close(fast(*inputs, track), original(*inputs, track))
    assert len(caplog.messages) == 1 and caplog.messages[0].endswith("(eval mode, tracked)")


class Masked(ThoughtMachine):
    """Takes something else where the published forward takes ``track``."""

    def forward(self, x, mask=None):
        return published(self, x if mask is None else x * mask)


def test_another_second_argument_runs_the_original(caplog):
    model, (x,) = build("base")
    model.__class__ = Masked
    original, fast = copies(model.eval(), 2)
    ctm_fast.accelerate(fast)
    for arguments in ((x,), (x, torch.zeros(8)), (x,)):
        assert_close(fast(*arguments), original(*arguments))
    assert caplog.messages == []


class Restart(ThoughtMachine):
    """Runs itself on halves of the batch."""

    def forward(self, x, track=False):
        if len(x) > 1:
            return tuple(torch.cat(parts) for parts in zip(self(x[:1]), self(x[1:]), strict=True))
        return published(self, x, track)


def test_a_forward_that_calls_its_model(caplog):
    model, inputs = build("base")
    model.__class__ = Restart
    original, fast = copies(model.eval(), 2)
    assert_close(ctm_fast.accelerate(fast)(*inputs), original(*inputs))
    assert caplog.messages == []


class Squashed(nn.Module):
    """Synapses of somebody's own."""

    def __init__(self, published):
        super().__init__()
        self.published = published

    def forward(self, x):
        return torch.tanh(self.published(x))


def test_parts_of_your_own_are_named_once(caplog):
    model, inputs = build("base")
    model.synapses = Squashed(model.synapses)
    original, fast = copies(model, 2)
    agree(original, ctm_fast.accelerate(fast), inputs)
    assert len(caplog.messages) == 1 and "every tick calls the synapses" in caplog.messages[0]


def test_a_loaded_model_says_nothing(caplog):
    model, inputs = build("base")
    loaded = ctm_fast.accelerate(ThoughtMachine())
    loaded.load_state_dict(model.state_dict())
    for _ in range(2):
        assert_close(loaded.eval()(*inputs), model.eval()(*inputs))
    assert caplog.messages == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", ["trace", "export"])
def test_tracing_and_export_read_the_original(way, caplog):
    original, fast, inputs = pair("base")
    if way == "trace":
        taken = torch.jit.trace(fast.eval(), inputs, check_trace=False)
    else:
        taken = torch.export.export(fast.eval(), inputs).module()
    assert_close(taken(*inputs), original.eval()(*inputs))
    assert_close(fast(*inputs), original(*inputs))
    assert "ctm_fast" not in {record.name for record in caplog.records}
