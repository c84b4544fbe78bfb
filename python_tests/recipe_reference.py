"""What an engine computes, from its recipe in plain NumPy of any precision. Letters as in ctm_fast.engine.recipe."""

import front_reference
import numpy as np
from front_reference import normalised, sigmoid, softmax

from ctm_fast.engine import weights as widths


class Reference:
    """Runs a recipe of any width in ``dtype``."""

    def __init__(self, recipe, dtype=np.float64):
        self.recipe, self.n, self.stages, self.dtype = recipe, recipe.sizes, recipe.stages, dtype
        arrays = widths.widened(recipe.arrays, recipe.weights)
        self.a = {name: x if x.dtype == np.int32 else x.astype(dtype) for name, x in arrays.items()}

    def linear(self, name, x, weight="", bias="_bias"):
        return x @ self.a[name + weight].T + self.a[name + bias]

    def heads(self, tokens, action):
        """Heads of one query, side by side (B, d)."""
        n, batch = self.n, len(action)
        kv = tokens.astype(self.dtype) @ self.a["keys_values"].T
        keys, values = (x.reshape(batch, -1, n.heads, n.width // n.heads) for x in np.split(kv, 2, -1))
        query = self.linear("query", action).reshape(batch, n.heads, -1)
        weights = softmax(np.einsum("bhw,blhw->bhl", query, keys))
        return np.einsum("bhl,blhw->bhw", weights, values).reshape(batch, -1)

    def pre_activations(self, first):
        """From the first linear map's result to new pre-activations."""
        outputs = []
        for i, s in enumerate(self.stages):
            name = f"stage{i}."
            x = first if i == 0 else self.linear(name, outputs[s.source], "weight", "bias")
            if s.kind == "glu":
                x = x[:, : s.width] * sigmoid(x[:, s.width :])
            x = normalised(x, -1, s.eps) * self.a[name + "norm"] + self.a[name + "norm_bias"]
            if s.kind != "glu":
                x = x * sigmoid(x)
            if s.kind == "skip":
                x = normalised(x + outputs[s.skip], -1, s.outer_eps) * self.a[name + "outer"]
                x = x + self.a[name + "outer_bias"]
            outputs.append(x)
        return outputs[-1]

    def models(self, history):
        """Neuron-level models of histories (B, M, D)."""
        for i in range(1 + self.n.deep):
            if self.n.normed:
                history = normalised(history, 1, self.a["eps"][i])
            u = np.einsum("bmd,mod->bod", history, self.a[f"w{i + 1}"]) + self.a[f"b{i + 1}"].T
            history = u[:, : u.shape[1] // 2] * sigmoid(u[:, u.shape[1] // 2 :])
        return history[:, 0]

    def advance(self, sums, z, which):
        """alpha, beta of one synchronisation after a tick, and it."""
        product = z[:, self.a[f"{which}left"]] * z[:, self.a[f"{which}right"]]
        alpha, beta = (x * self.a[f"{which}factor"] for x in sums)
        alpha, beta = alpha + product, beta + 1
        return (alpha, beta), alpha / np.sqrt(beta)

    def __call__(self, inputs):
        """predictions (B, C, T) and synchronisation (B, S); of a stateful recipe from its learned start."""
        n, batch = self.n, inputs.batch
        tokens, given_inputs = front_reference.behind(self.recipe, self.a, inputs, self.dtype)
        pre, post = (
            np.repeat(self.a[x][None], batch, 0) if x in self.a else None for x in ("start", "start_post")
        )
        z = post[:, -1] if n.stateful else np.repeat(self.a["z0"][None], batch, 0)
        action = tuple(np.zeros((batch, n.action), self.dtype) for _ in range(2))
        alpha = (
            np.zeros_like(z, shape=(batch, n.pairs))
            if n.stateful
            else z[:, self.a["left"]] * z[:, self.a["right"]]
        )
        out, predictions = (alpha, np.ones_like(alpha)), []
        first = self.a["stage0.weight"]
        for what in inputs.schedule:
            if n.heads:
                action, synchronised = self.advance(action, z, "action_")
            if what >= 0:
                x = np.concatenate((self.heads(tokens[what], synchronised), z), 1)
                linear = x @ first.T + self.a["stage0.bias"]
            else:
                given = given_inputs[-1 - what].astype(self.dtype) @ self.a["from_given"].T
                linear = given + self.a["given_bias"] + z @ first[:, n.width :].T
            pre = np.concatenate((pre[:, 1:], self.pre_activations(linear)[:, None]), 1)
            z = self.models(pre)
            if n.stateful:
                post = np.concatenate((post[:, 1:], z[:, None]), 1)
                continue
            out, last = self.advance(out, z, "")
            predictions.append(self.linear("project", last))
        return (self.window(post),) if n.stateful else (np.stack(predictions, -1), last)

    def window(self, post):
        """The synchronisation over remembered post-activations."""
        sums = tuple(np.zeros((len(post), self.n.pairs), self.dtype) for _ in range(2))
        for m in range(self.n.memory):
            sums, last = self.advance(sums, post[:, m], "")
        return last
