"""The sorting, QAMNIST and reinforcement-learning CTMs, and the agent."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ctm_fast.models import (
    Agent,
    ContinuousThoughtMachineQAMNIST,
    ContinuousThoughtMachineRL,
    ContinuousThoughtMachineSORT,
    LSTMBaselineRL,
)

NLM: dict[str, Any] = {
    "memory_length": 3,
    "deep_nlms": True,
    "memory_hidden_dims": 2,
    "do_layernorm_nlm": False,
}
NLM_KEYS = {f"trace_processor.0.{layer}.{name}" for layer in (0, 2) for name in ("w1", "b1", "T")}


def names(*modules):
    return {f"{module}.{name}" for module in modules for name in ("weight", "bias")}


def indices(kind):
    return {f"{kind}_neuron_indices_{side}" for side in ("left", "right")}


def build_sort(**changes):
    arguments: dict[str, Any] = {
        "iterations": 4,
        "d_model": 12,
        "d_input": 5,
        "heads": 4,
        "n_synch_out": 6,
        "n_synch_action": 6,
    }
    arguments |= {**NLM, "synapse_depth": 1, "backbone_type": "none", "positional_embedding_type": "none"}
    return ContinuousThoughtMachineSORT(**{**arguments, "out_dims": 6, **changes})


def test_sort_keys():
    model = build_sort()
    model(torch.randn(2, 5))
    assert set(model.state_dict()) == {
        "start_activated_state",
        "start_trace",
        "decay_params_out",
        *indices("out"),
        *NLM_KEYS,
        *names("synapses.1", "synapses.3", "output_projector.0"),
    }
    assert model.synapses[1].in_features == 5 + 12


def test_sort_reads_the_numbers_first():
    model = build_sort()
    x = torch.randn(2, 5)
    model(x)
    inputs = []
    model.synapses.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    model.published_forward(x)
    assert len(inputs) == 4
    for u in inputs:
        torch.testing.assert_close(u[:, :5], x)


def test_sort_outputs_follow_the_inputs_dtype():
    x = torch.randn(2, 5, dtype=torch.float64)
    model = build_sort().double()
    predictions, certainties, _ = model.published_forward(x)
    assert (predictions.dtype, certainties.dtype) == (torch.float64, torch.float64)
    assert (predictions.shape, certainties.shape) == ((2, 6, 4), (2, 2, 4))
    _, _, out, pre, post, attention = model.published_forward(x, track=True)
    assert [a.shape for a in (out, pre, post, attention)] == [(4, 2, 6), (4, 2, 12), (4, 2, 12), (0,)]


def test_sort_clamps_decays_in_the_graph():
    model = build_sort()
    with torch.no_grad():
        model.decay_params_out.copy_(torch.tensor([-1.0, 0.5, 3, 16, -2, 99]))
    model.published_forward(torch.randn(3, 5))[0].square().sum().backward()
    assert model.decay_params_out.tolist() == [-1.0, 0.5, 3, 16, -2, 99]
    assert (model.decay_params_out.grad != 0).tolist() == [False, True, True, False, False, False]


def build_qamnist(**changes):
    arguments: dict[str, Any] = {
        "iterations": 1,
        "d_model": 12,
        "d_input": 8,
        "heads": 2,
        "n_synch_out": 4,
        "n_synch_action": 3,
    }
    arguments |= {**NLM, "synapse_depth": 1, "out_dims": 10, "iterations_per_digit": 2}
    arguments |= {"iterations_per_question_part": 2, "iterations_for_answering": 3}
    return ContinuousThoughtMachineQAMNIST(**{**arguments, **changes})


def digits_and_question(batch=2):
    """Two digits and the question "0 + 1", everything for two ticks."""
    digits = torch.randn(batch, 2, 1, 32, 32).repeat_interleave(2, dim=1)
    return digits, torch.tensor([[0, 0, -1, -1, 1, 1]]).repeat(batch, 1)


def test_qamnist_keys():
    model = build_qamnist()
    model(*digits_and_question())
    statistics = {f"backbone_digit.layers.{i}.running_{x}" for i in (1, 5) for x in ("mean", "var")}
    statistics |= {f"backbone_digit.layers.{i}.num_batches_tracked" for i in (1, 5)}
    assert set(model.state_dict()) == {
        "start_activated_state",
        "start_trace",
        "decay_params_out",
        "decay_params_action",
        *indices("out"),
        *indices("action"),
        *NLM_KEYS,
        *statistics,
        *names(*(f"backbone_digit.layers.{i}" for i in (0, 1, 4, 5))),
        "index_backbone.embedding",
        "operator_backbone.embedding.weight",
        *names("kv_proj.0", "kv_proj.1", "q_proj", "attention.out_proj", "synapses.1", "synapses.3"),
        "attention.in_proj_weight",
        "attention.in_proj_bias",
        *names("output_projector.0"),
    }
    assert model.index_backbone.embedding.shape == (50, 8)


def test_qamnist_ticks_and_tracks():
    model = build_qamnist()
    x, z = digits_and_question()
    predictions, certainties, synchronisation = model.published_forward(x, z)
    assert (predictions.shape, certainties.shape) == ((2, 10, 13), (2, 2, 13))
    assert synchronisation.shape == (2, 10)
    *_, pre, post, attention, embeddings = model.published_forward(x, z, track=True)
    assert (pre.shape, post.shape) == ((13, 2, 12), (13, 2, 12))
    assert attention.shape == (4, 2, 2, 1, 64)
    table, operators = model.index_backbone.embedding, model.operator_backbone.embedding.weight.detach()
    question = [table[0], table[0], operators[0], operators[0], table[1], table[1]]
    expected = torch.stack(question).unsqueeze(1).expand(-1, 2, -1)
    torch.testing.assert_close(torch.from_numpy(embeddings), expected)


def test_qamnist_inputs_reach_the_synapses():
    model = build_qamnist()
    x, z = digits_and_question()
    model(x, z)
    inputs = []
    model.synapses.register_forward_pre_hook(lambda _, args: inputs.append(args[0][:, :8]))
    embeddings = model.published_forward(x, z, track=True)[-1]
    torch.testing.assert_close(torch.stack(inputs[4:10]), torch.from_numpy(embeddings))
    assert all((u == 0).all() for u in inputs[10:])
    assert len(inputs) == 13


def test_qamnist_batch_norm_sees_each_image_once():
    model = build_qamnist()
    x, z = digits_and_question()
    model.published_forward(x, z)
    assert model.backbone_digit.layers[1].num_batches_tracked == 2


def test_qamnist_draws_its_operators_before_its_attention():
    torch.manual_seed(5)
    model = build_qamnist()
    torch.manual_seed(5)
    operators, attention = nn.Embedding(2, 8), nn.MultiheadAttention(8, 2)
    assert torch.equal(model.operator_backbone.embedding.weight, operators.weight)
    assert torch.equal(model.attention.in_proj_weight, attention.in_proj_weight)


@pytest.mark.parametrize(
    ("x", "z"), [((2, 4, 32, 32), (2, 6)), ((2, 4, 1, 32, 32), (3, 6))], ids=["no-channel", "batch"]
)
def test_qamnist_wrong_shapes(x, z):
    with pytest.raises(ValueError, match="qamnist: digits must be"):
        build_qamnist().published_forward(torch.zeros(x), torch.zeros(z, dtype=torch.int64))


def build_rl(**changes):
    arguments: dict[str, Any] = {
        "iterations": 2,
        "d_model": 12,
        "d_input": 8,
        "n_synch_out": 4,
        "synapse_depth": 1,
        **NLM,
    }
    arguments |= {"backbone_type": "classic-control-backbone"}
    return ContinuousThoughtMachineRL(**{**arguments, **changes})


def test_rl_keys():
    model = build_rl()
    model(torch.randn(2, 4), model.initial_state(2))
    assert set(model.state_dict()) == {
        "start_trace",
        "start_activated_trace",
        "decay_params_out",
        "diagonal_mask_out",
        *indices("out"),
        *NLM_KEYS,
        *names(*(f"synapses.{i}" for i in (1, 3, 4, 6))),
        *names(*(f"backbone.input_projector.{i}" for i in (1, 3, 4, 6))),
    }
    assert torch.equal(model.diagonal_mask_out, torch.ones(4, 4, dtype=torch.bool).triu())
    assert model.out_neuron_indices_left.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"neuron_select_type": "random"}, "neuron_select_type must be 'first-last', got 'random'"),
        ({"backbone_type": "resnet18-1"}, "backbone_type must be one of"),
    ],
    ids=["selection", "backbone"],
)
def test_rl_wrong_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        build_rl(**changes)


def test_rl_draws_its_starts_in_the_published_order():
    torch.manual_seed(5)
    model = build_rl()
    torch.manual_seed(5)
    for name, shape, fan in (("0", (3, 4, 12), 7), ("2", (2, 2, 12), 4)):
        drawn = torch.empty(shape).uniform_(-(fan**-0.5), fan**-0.5)
        assert torch.equal(model.trace_processor[0].get_submodule(name).w1, drawn)
    torch.empty(12).uniform_()
    for start in (model.start_trace, model.start_activated_trace):
        assert torch.equal(start, torch.empty(12, 3).uniform_(-(15**-0.5), 15**-0.5))


def test_rl_synchronisation_over_the_window():
    model = build_rl().double()
    with torch.no_grad():
        model.decay_params_out.uniform_(-1, 6)
    s, (_, activated) = model.published_forward(torch.randn(2, 4).double(), model.initial_state(2))
    pairs = [(i, j) for i in range(8, 12) for j in range(i, 12)]
    for p, (i, j) in enumerate(pairs):
        decay = model.decay_params_out[p].clamp(0, 4)
        weights = torch.exp(-torch.tensor([2.0, 1, 0]) * decay)
        numerator = sum(weights[k] * activated[:, i, k] * activated[:, j, k] for k in range(3))
        torch.testing.assert_close(s[:, p], numerator / weights.sum().sqrt())
    left, right = model.synchronisation_pairs("out")
    assert list(zip(left.tolist(), right.tolist(), strict=True)) == pairs


def test_rl_decay_has_no_gradient_outside_its_range():
    model = build_rl()
    with torch.no_grad():
        model.decay_params_out.copy_(torch.linspace(-1, 6, 10))
    model.published_forward(torch.randn(2, 4), model.initial_state(2))[0].sum().backward()
    inside = (model.decay_params_out >= 0) & (model.decay_params_out <= 4)
    assert torch.equal(model.decay_params_out.grad != 0, inside)


def test_rl_histories_are_carried():
    model = build_rl(iterations=1).eval()
    x = torch.randn(2, 4)
    once, state = model.published_forward(x, model.initial_state(2))
    *_, pre, post = model.published_forward(x, state, track=True)
    twice, carried = model.published_forward(x, state)
    model.iterations = 2
    together, (trace, activated) = model.published_forward(x, model.initial_state(2))
    torch.testing.assert_close((twice, *carried), (together, trace, activated))
    np.testing.assert_allclose(pre[0], trace[:, :, -1].detach())
    np.testing.assert_allclose(post[0], activated[:, :, -1].detach())
    assert not torch.equal(once, twice)


AGENTS = {
    "ctm": build_rl,
    "lstm": lambda: LSTMBaselineRL(
        iterations=2, d_model=9, d_input=8, backbone_type="classic-control-backbone"
    ),
}


@pytest.mark.parametrize("kind", AGENTS)
def test_agent_steps_equal_one_rollout(kind):
    agent = Agent(AGENTS[kind](), n_actions=3)
    x, done = torch.randn(4, 2, 4), torch.tensor([[0, 0], [1, 0], [0, 1], [0, 0]])
    state: Any = agent.get_initial_state(2)
    features = []
    for step in range(4):
        start = agent.get_initial_state(2)
        state = tuple(
            torch.stack([new[b] if done[step, b] else old[b] for b in range(2)])
            for new, old in zip(start, state, strict=True)
        )
        out, state = agent.recurrent_model(x[step], state)
        features.append(out)
    rollout, last = agent.get_states(x.flatten(0, 1), agent.get_initial_state(2), done.flatten())
    torch.testing.assert_close(rollout, torch.cat(features))
    torch.testing.assert_close(last, state)


@pytest.mark.parametrize("kind", AGENTS)
def test_agent_acts(kind):
    agent = Agent(AGENTS[kind](), n_actions=3)
    x, done = torch.randn(6, 4), torch.zeros(6)
    action, log_prob, entropy, value, _ = agent.get_action_and_value(x, agent.get_initial_state(2), done)
    assert [t.shape for t in (action, log_prob, entropy)] == [(6,)] * 3
    again = agent.get_action_and_value(x, agent.get_initial_state(2), done, action)
    torch.testing.assert_close(again[1], log_prob)
    torch.testing.assert_close(agent.get_value(x, agent.get_initial_state(2), done), value)


def test_agent_heads_are_orthogonal():
    agent: Any = Agent(build_rl(), n_actions=3)
    for layers, out in ((agent.actor[::2], 3), (agent.critic[::2], 1)):
        assert [tuple(layer.weight.shape) for layer in layers] == [(64, 10), (64, 64), (out, 64)]
        weight = layers[1].weight
        torch.testing.assert_close(weight @ weight.t(), torch.eye(64))
        assert all((layer.bias == 0).all() for layer in layers)
    assert {key.split(".")[0] for key in agent.state_dict()} == {"recurrent_model", "actor", "critic"}


def test_agent_needs_whole_steps():
    agent = Agent(build_rl(), n_actions=3)
    with pytest.raises(ValueError, match=r"get_states: x and done must have steps \* 2 rows, got 5 and 5"):
        agent.get_states(torch.randn(5, 4), agent.get_initial_state(2), torch.zeros(5))
