"""The graph experiment: random graphs, paths and relations against loops, the phases of a question, walks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from tasks.command import main
from tasks.dnc_graph import graphs as g
from tasks.dnc_graph import questions
from tasks.dnc_graph.config import PRESETS
from tasks.dnc_graph.encoding import ANSWER, PHASE, TRIPLE, digits, one_hot
from tasks.dnc_graph.lessons import HARDER, LESSONS, Lesson
from tasks.dnc_graph.task import DncGraph
from tasks.dnc_graph.walking import walk
from tasks.errors import UserError
from tasks.task import batch_generator

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = replace(
    PRESETS["quick"],
    controller_size=8,
    slots=100,
    width=4,
    read_heads=1,
    batch_size=4,
    batch_size_test=4,
    n_test_batches=1,
    training_iterations=2,
    track_every=2,
)
LESSON = Lesson((4, 7), (2, 4), (1, 3), 2)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def edges_of(graphs: g.Graphs, row: int) -> dict[int, dict[int, int]]:
    """Node to edge label to node."""
    found: dict[int, dict[int, int]] = {}
    for node, edge in graphs.exists[row].nonzero().tolist():
        label = int(graphs.edges[row, node, edge])
        found.setdefault(node, {})[label] = int(graphs.targets[row, node, edge])
    return found


def decode(coded: Tensor) -> list[int | None]:
    """Labels of a coded triple (90,), None where a part is blank."""
    labels: list[int | None] = []
    for part in coded.view(3, 3, 10):
        labels.append(int("".join(str(int(d)) for d in part.argmax(1))) if part.sum() else None)
    return labels


def test_graphs_have_the_sizes_asked_for(generator: torch.Generator) -> None:
    graphs = g.random_graphs(200, (3, 9), (2, 4), generator)
    counts = graphs.exists.any(2).sum(1)
    assert (counts.min(), counts.max()) == (3, 9)
    degrees = graphs.exists.sum(2)[graphs.exists.any(2)]
    assert (degrees.min(), degrees.max()) == (2, 4)
    for row in range(200):
        labels = graphs.nodes[row].tolist()
        assert len(set(labels)) == len(labels)
        for node, out in edges_of(graphs, row).items():
            assert len(out) == graphs.exists[row, node].sum()  # labels differ
            assert len(set(out.values())) == len(out)
            assert node not in out.values()
            assert max(out.values()) < counts[row]


def test_edges_lead_to_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    points = torch.tensor([[[0.0, 0.0], [0.1, 0.0], [0.3, 0.0], [0.9, 0.0]]])
    monkeypatch.setattr(torch, "rand", lambda *size, **_: points if size[-1] == 2 else torch.zeros(size))
    graphs = g.random_graphs(1, (4, 4), (2, 2), torch.Generator())
    assert graphs.targets[0].sort(1).values.tolist() == [[1, 2], [0, 2], [0, 1], [1, 2]]


def test_distances_against_a_search(generator: torch.Generator) -> None:
    graphs = g.random_graphs(20, (5, 12), (2, 3), generator)
    found = g.distances_between(graphs, 3)
    for row in range(20):
        out = edges_of(graphs, row)
        for start in out:
            reached, frontier = {start: 0}, [start]
            for distance in (1, 2, 3):
                frontier = [t for node in frontier for t in out[node].values() if t not in reached]
                reached |= dict.fromkeys(frontier, distance)
            expected = [reached.get(node, g.MISSING) for node in range(found.shape[2])]
            assert found[row, start].tolist() == expected


def test_relations_against_a_loop(generator: torch.Generator) -> None:
    graphs = g.random_graphs(5, (6, 9), (2, 4), generator, edge_labels=g.EDGE_TYPES)
    types, lengths = g.relation_table()
    reached = g.follow_relations(graphs, types)
    assert lengths.tolist() == [2] * 100 + [3] * 100 + [4] * 100 + [5] * 100
    assert len({tuple(row) for row in types.tolist()}) == 400
    for row in range(5):
        out = edges_of(graphs, row)
        for start in out:
            for relation in range(0, 400, 7):
                node: int | None = start
                for kind in types[relation, : lengths[relation]].tolist():
                    node = None if node is None else out[node].get(kind)
                assert reached[row, start, relation] == (g.MISSING if node is None else node)


def test_traversal_describes_asks_and_expects_a_walk(generator: torch.Generator) -> None:
    inputs, targets, mask = questions.traversal(8, LESSON, generator)
    for column in range(8):
        steps = inputs[:, column]
        query, answer = steps[:, PHASE].nonzero().flatten().tolist()
        described = [decode(step) for step in steps[:query, :TRIPLE]]
        edges = {(source, edge): target for source, edge, target in described}
        assert len(edges) == query
        expected = mask[:, column].nonzero().flatten().tolist()
        assert expected == steps[:, ANSWER].nonzero().flatten().tolist()
        assert expected == list(range(answer, answer + answer - query))
        node = decode(steps[query, :TRIPLE])[0]
        for offset, step in enumerate(expected):
            source, edge, target = decode(one_hot_digits(targets[step, column]))
            asked = decode(steps[query + offset, :TRIPLE])
            assert asked == [node if offset == 0 else None, edge, None]
            assert source == node
            assert edges[source, edge] == target
            node = target
        assert not steps[answer:, :TRIPLE].any()


def one_hot_digits(target: Tensor) -> Tensor:
    return nn.functional.one_hot(target, 10).flatten()


def test_inference_asks_for_the_end_of_a_relation(generator: torch.Generator) -> None:
    inputs, targets, mask = questions.inference(6, LESSON, generator)
    types, lengths = g.relation_table()
    for column in range(6):
        steps = inputs[:, column]
        phases = steps[:, PHASE].nonzero().flatten().tolist()
        edges = {(s, e): t for s, e, t in (decode(step) for step in steps[: phases[0], :TRIPLE])}
        assert len(phases) == 3 * LESSON.queries
        assert mask[:, column].sum() == LESSON.queries
        for start, planning, answer in zip(phases[::3], phases[1::3], phases[2::3], strict=True):
            assert (planning - start, answer - planning) == (1, questions.PLANNING)
            source, relation, blank = decode(steps[start, :TRIPLE])
            assert blank is None
            node = source
            for kind in types[relation - g.EDGE_TYPES, : lengths[relation - g.EDGE_TYPES]].tolist():
                node = edges[node, kind]
            assert decode(one_hot_digits(targets[answer, column])) == [source, relation, node]


@pytest.mark.parametrize("name", LESSONS)
def test_every_lesson_can_be_drawn(name: str, generator: torch.Generator) -> None:
    for lesson in (*LESSONS[name], HARDER[name]):
        if name == "shortest_path":
            routes = questions.shortest_path(3, lesson, 0.8, generator)
            togo = routes.togo.gather(1, routes.source[:, None])
            assert togo.min() >= 1
            assert togo.max() <= lesson.path[1]
        else:
            _, _, mask = getattr(questions, name)(3, lesson, generator)
            assert mask.sum(0).min() >= 1


def test_lessons_run_from_the_first_to_the_last_of_the_paper() -> None:
    assert {name: len(lessons) for name, lessons in LESSONS.items()} == {
        "traversal": 14,
        "shortest_path": 15,
        "inference": 17,
    }
    assert LESSONS["traversal"][0] == Lesson((3, 10), (2, 4), (1, 1))
    assert LESSONS["traversal"][-1] == Lesson((10, 40), (2, 6), (1, 20))
    assert LESSONS["shortest_path"][-1] == Lesson((20, 25), (2, 6), (2, 5))
    assert LESSONS["inference"][-1] == Lesson((20, 25), (2, 4), (2, 5), 3)


def test_digits_are_decimal() -> None:
    assert digits(torch.tensor([[7, 42, 999]])).tolist() == [[0, 0, 7, 0, 4, 2, 9, 9, 9]]
    assert decode(one_hot(torch.tensor([7, 42, 999]), (True, False, True))) == [7, None, 999]


class Guide(nn.Module):
    """A network that always names the same optimal route, wrong in the answers listed."""

    class Found(NamedTuple):
        output: Tensor
        state: Any

    def __init__(self, triples: list[list[int]], wrong: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.triples, self.wrong = triples, wrong
        self.heard: list[Tensor] = []
        self.scale = nn.Parameter(torch.tensor(9.0))

    def forward(self, x: Tensor, state: int | None = None) -> Found:
        if state is None:
            return self.Found(x.new_zeros(len(x), x.shape[1], TRIPLE), 0)
        self.heard.append(x[0, 0])
        place = state - sum(w < state for w in self.wrong)
        triple = self.triples[min(place, len(self.triples) - 1)]
        coded = one_hot(torch.tensor([[[0, 0, 0] if state in self.wrong else triple]]))
        return self.Found(self.scale * coded, state + 1)


def a_route(generator: torch.Generator) -> tuple[questions.Routes, list[list[int]]]:
    """One graph whose goal is three edges away, and the triples of an optimal route."""
    routes = questions.shortest_path(1, Lesson((9, 9), (2, 3), (3, 3)), 0.0, generator)
    node, triples = int(routes.source), []
    width = routes.targets.shape[2]
    while routes.togo[0, node] > 0:
        edge = next(
            e
            for e in range(width)
            if routes.exists[0, node, e]
            and routes.togo[0, routes.targets[0, node, e]] == routes.togo[0, node] - 1
        )
        triples.append(routes.triples[0, node * width + edge].tolist())
        node = int(routes.targets[0, node, edge])
    assert len(triples) == 3
    return routes, triples


def test_a_walk_follows_right_answers_and_hears_them(generator: torch.Generator) -> None:
    routes, triples = a_route(generator)
    guide = Guide(triples).eval()
    found = walk(guide, routes, 4)
    assert found.arrived.tolist() == [True]
    assert found.asked[:, 0].tolist() == [True, True, True, False]
    assert found.right[:, 0].tolist() == [True, True, True, False]
    assert guide.heard[0][PHASE] == 1.0
    assert not guide.heard[0][:TRIPLE].any()
    assert [decode(step[:TRIPLE]) for step in guide.heard[1:4]] == triples
    assert all(step[ANSWER] == 1.0 for step in guide.heard)
    assert found.losses[3, 0] == 0


def test_a_wrong_answer_costs_a_step(generator: torch.Generator) -> None:
    routes, triples = a_route(generator)
    found = walk(Guide(triples, wrong=(1,)).eval(), routes, 4)
    assert found.right[:, 0].tolist() == [True, False, True, True]
    assert found.arrived.tolist() == [True]
    assert not walk(Guide(triples, wrong=(1, 2)).eval(), routes, 4).arrived.any()


def test_guidance_takes_the_optimal_edge_in_training_only(generator: torch.Generator) -> None:
    routes, triples = a_route(generator)
    routes = routes._replace(guided=torch.ones_like(routes.guided))
    guide = Guide(triples, wrong=(0, 1, 2, 3))
    trained = walk(guide.train(), routes, 4)
    assert trained.arrived.all()
    assert not trained.right.any()
    assert not walk(guide.eval(), routes, 4).arrived.any()
    trained.losses.sum().backward()
    assert guide.scale.grad is not None and guide.scale.grad.isfinite()


def test_scores_of_a_walk(generator: torch.Generator) -> None:
    routes, triples = a_route(generator)
    task = DncGraph(replace(TINY, question="shortest_path", lessons=None))
    rows = []
    for wrong in ((), (1,), (1, 2)):
        _, metrics = task.loss(Guide(triples, wrong).eval(), routes)
        rows.append([metrics[name].item() for name in ("accuracy", "accuracy_all", "accuracy_within_one")])
    assert rows == [[1.0, 1.0, 1.0], [0.75, 0.0, 1.0], [0.5, 0.0, 0.0]]


def test_scores_of_triples() -> None:
    class Answers(nn.Module):
        def forward(self, inputs: Tensor) -> Guide.Found:
            return Guide.Found(output, None)

    inputs, targets, mask = questions.traversal(3, Lesson((5, 5), (2, 2), (2, 2)), torch.Generator())
    output = nn.functional.one_hot(targets, 10).float().flatten(2) * 30.0
    asked = mask[:, 1].nonzero()[0]
    output[asked, 1, :10] = output[asked, 1, :10].roll(1)
    loss, metrics = DncGraph(TINY).loss(Answers(), (inputs, targets, mask))
    assert metrics["accuracy"].tolist() == [1.0, 0.5, 1.0]
    assert metrics["accuracy_all"].tolist() == [1.0, 0.0, 1.0]
    assert loss.item() == pytest.approx(30.0 / 6, rel=1e-4)


def test_curriculum_draws_its_lesson_and_sometimes_earlier_ones() -> None:
    task = DncGraph(replace(TINY, lessons=5, earlier=0.5))
    assert task.curriculum is not None and task.curriculum.level == 1
    task.curriculum.index = 4
    answers = [int(task.batch(s, batch_generator(0, s))[2].sum(0).max()) for s in range(40)]
    assert max(answers) > 4  # paths of the fifth lesson have up to 7 edges
    assert min(answers) <= 2
    alone = DncGraph(replace(TINY, lessons=5, earlier=0.0, curriculum=False))
    assert alone.curriculum is None
    assert torch.equal(alone.batch(0, batch_generator(0, 0))[0], alone.batch(0, batch_generator(0, 0))[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"question": "colouring"},
            "task must be one of traversal, shortest_path, inference, got 'colouring'",
        ),
        ({"lessons": 15}, r"lessons must be None or lie in \[1, 14\], got 15"),
        ({"curriculum_goal": 0.0}, r"curriculum_goal must lie in \(0, 1\], got 0.0"),
        ({"slots": 23}, "slots must be at least 24, one for each triple of a mean graph of the last"),
        ({"earlier": 1.0}, r"earlier must lie in \[0, 1\), got 1.0"),
        ({"guidance": 2.0}, r"guidance must lie in \[0, 1\], got 2.0"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_bad_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"config: {message}"):
        replace(TINY, **changes)


@pytest.mark.parametrize("question", LESSONS)
def test_the_command_trains_and_evaluates(
    question: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(PRESETS, "quick", TINY)
    out = str(tmp_path / "run")
    assert main(DncGraph, ["train", "--preset", "quick", "--task", question, "--out", out]) == 0
    assert main(DncGraph, ["evaluate", "--preset", "quick", "--checkpoint", out]) == 0
    assert "larger/accuracy_all" in capsys.readouterr().out
