"""Recurrent layers, written out over the steps of the example's sequence.

What is computed at every step (hidden products, gates, states) is on one grid for all steps, whose quantizers are
shared, and so are those of the weights: `shared` marks the nodes. The state that is carried on (an LSTM's cell, a GRU's
hidden state) has 16 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

SHARED = "one_grid"
"""The key in a node's meta of the name that nodes on one grid have in common."""
WIDE = "wide_grid"
"""The key in a node's meta that says that its grid has 16 bits."""


class SumOfProducts(nn.Module):
    """a·b + c·d, which integers compute with one rounding."""

    def forward(self, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        return a * b + c * d


class Regrid(nn.Module):
    """The same tensor on a grid of its own: a state of 16 bits as other operations take it, or one that is given."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


def _call(module: type[nn.Module], name: str, *args: Any) -> Any:
    """Record a call of a module that recording adds to the network."""
    tracer: Any = args[0].tracer
    if not hasattr(tracer.root, name):
        tracer.root.add_module(name, module())
    return tracer.create_proxy("call_module", name, args, {})


def _sum_of_products(a: Any, b: Any, c: Any, d: Any) -> Any:
    return _call(SumOfProducts, "sum_of_products_in_forward", a, b, c, d)


def _regrid(x: Any) -> Any:
    return _call(Regrid, "regrid_in_forward", x)


def shared(x: Any, name: str, *, wide: bool = False) -> Any:
    """Say that a tensor is on one grid with all others of this name in the recorded module, in all its calls."""
    stack = x.node.meta.get("nn_module_stack") or {"": ("", None)}
    place = next(reversed(stack.values()))[0].replace(".", "_")
    x.node.meta[SHARED] = f"{place}_{name}" if place else name
    x.node.meta[WIDE] = wide
    return x


def _hidden(layer: nn.Module, h: Any, suffix: str) -> Any:
    """W_h·h + b_h."""
    weight, bias = getattr(layer, f"weight_hh{suffix}"), getattr(layer, f"bias_hh{suffix}", None)
    return shared(F.linear(h, weight, bias), f"weight_hh{suffix}")


def _given(layer: nn.Module, x: Any, suffix: str) -> Any:
    """W_x·x + b_x."""
    weight, bias = getattr(layer, f"weight_ih{suffix}"), getattr(layer, f"bias_ih{suffix}", None)
    return shared(F.linear(x, weight, bias), f"weight_ih{suffix}")


def _lstm_step(layer: Any, given: Any, state: Sequence[Any], suffix: str) -> Sequence[Any]:
    h, c = state
    size = layer.hidden_size
    gates = shared(given + _hidden(layer, h, suffix), f"gates{suffix}")
    first = shared(gates[:, : 2 * size].sigmoid(), f"open{suffix}")
    i, f = first[:, :size], first[:, size:]
    g = shared(gates[:, 2 * size : 3 * size].tanh(), f"candidate{suffix}")
    o = shared(gates[:, 3 * size :].sigmoid(), f"output{suffix}")
    c = shared(_sum_of_products(f, c, i, g), f"cell{suffix}", wide=True)
    h = o * shared(c.tanh(), f"squashed{suffix}")
    if getattr(layer, "proj_size", 0):
        h = F.linear(shared(h, f"projected{suffix}"), getattr(layer, f"weight_hr{suffix}"))
    return shared(h, f"state{suffix}"), c


def _gru_step(layer: Any, given: Any, state: Sequence[Any], suffix: str) -> Sequence[Any]:
    (h,) = state
    size, hidden = layer.hidden_size, _hidden(layer, h, suffix)
    gates = shared(given[:, : 2 * size] + hidden[:, : 2 * size], f"gates{suffix}")
    r = shared(gates[:, :size].sigmoid(), f"reset{suffix}")
    z = shared(gates[:, size:].sigmoid(), f"keep{suffix}")
    other = shared((-gates[:, size:]).sigmoid(), f"replace{suffix}")  # 1 − z
    recalled = shared(r * hidden[:, 2 * size :], f"recalled{suffix}")
    n = shared(given[:, 2 * size :] + recalled, f"sum{suffix}")
    n = shared(n.tanh(), f"candidate{suffix}")
    return (shared(_sum_of_products(other, n, z, h), f"state{suffix}", wide=True),)


def _rnn_step(layer: Any, given: Any, state: Sequence[Any], suffix: str) -> Sequence[Any]:
    (h,) = state
    total = shared(given + _hidden(layer, h, suffix), f"sum{suffix}")
    return (shared(total.tanh() if layer.nonlinearity == "tanh" else total.relu(), f"state{suffix}"),)


def _states(step: Callable, layer: Any, x: Any, values: Sequence[Any] | None, suffix: str) -> Sequence[Any]:
    """The initial states, zeros where none are given, on the grids of the later ones."""
    names = (("state", False), ("cell", True)) if step is _lstm_step else (("state", step is _gru_step),)
    states = []
    for place, (name, wide) in enumerate(names):
        if values is None:
            size = getattr(layer, "proj_size", 0) if place == 0 else 0
            state = x.new_zeros(x.size(0), size or layer.hidden_size)
        else:
            state = values[place]
            if not isinstance(state, fx.Proxy):
                raise fx.proxy.TraceError(
                    f"nn.{type(layer).__name__} is given a state that is no tensor of the network"
                )
            if str(state.node.meta.get(SHARED)).endswith(f"{name}{suffix}") and type(layer).__name__.endswith("Cell"):
                states.append(state)  # of the step before
                continue
            state = _regrid(state)
        states.append(shared(state, f"{name}{suffix}", wide=wide))
    return states


def _cell(step: Callable) -> Callable:
    def written_out(layer: Any, input: Any, hx: Any = None) -> Any:
        if input.dim() != 2:
            raise fx.proxy.TraceError(f"nn.{type(layer).__name__} without a batch has no integer form")
        lstm = step is _lstm_step
        state = hx if lstm or hx is None else (hx,)
        state = step(layer, _given(layer, input, ""), _states(step, layer, input, state, ""), "")
        return state if lstm else state[0]

    return written_out


def _layers(step: Callable) -> Callable:
    def written_out(layer: Any, input: Any, hx: Any = None) -> Any:
        lstm, directions = step is _lstm_step, 2 if layer.bidirectional else 1
        if not isinstance(input, fx.Proxy) or input.dim() != 3:
            raise fx.proxy.TraceError(
                f"nn.{type(layer).__name__} of a packed sequence, or without a batch, has no integer form: give it "
                "padded sequences"
            )
        x = input if layer.batch_first else input.transpose(0, 1)
        given = None if hx is None else (hx if lstm else (hx,))
        last: list[Sequence[Any]] = []
        for number in range(layer.num_layers):
            ways = []
            for direction in range(directions):
                suffix = f"_l{number}" + ("_reverse" if direction else "")
                place = number * directions + direction
                first = None if given is None else [each[place] for each in given]
                state = _states(step, layer, x, first, suffix)
                parts = _given(layer, x, suffix).unbind(1)
                outputs: list[Any] = [None] * len(parts)
                for t in reversed(range(len(parts))) if direction else range(len(parts)):
                    state = step(layer, parts[t], state, suffix)
                    outputs[t] = shared(_regrid(state[0]), f"sequence{suffix}") if step is _gru_step else state[0]
                ways.append(torch.stack(outputs, 1))
                last.append(state if lstm else (outputs[0 if direction else -1],))
            x = ways[0] if directions == 1 else torch.cat(ways, -1)
            if layer.dropout and number < layer.num_layers - 1:
                x = F.dropout(x, layer.dropout)
        states = tuple(torch.stack(each, 0) for each in zip(*last))
        return x if layer.batch_first else x.transpose(0, 1), states if lstm else states[0]

    return written_out


MODULES: dict[type[nn.Module], Callable] = {
    nn.LSTM: _layers(_lstm_step),
    nn.GRU: _layers(_gru_step),
    nn.RNN: _layers(_rnn_step),
    nn.LSTMCell: _cell(_lstm_step),
    nn.GRUCell: _cell(_gru_step),
    nn.RNNCell: _cell(_rnn_step),
}
"""By class of module: what a call of it is written out as."""
