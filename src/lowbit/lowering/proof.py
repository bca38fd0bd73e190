"""Whether the integer network computes what the trained one does, node by node.

Every tensor that a quantizer of the trained network puts on a grid is computed twice from the tensors before it, which
are given: their codes are those that the trained network's own quantizers give.

    integer   the integer nodes between, executed on these codes ("float" rounding)
    exact     the trained network's own operations between, in float64, on the real values of these codes
              (`lowering.exact`)

The integer code must be the code of the exact value v (in steps of the output, clip(rint(v) + z)). Both are roundings
of one number, so they may differ only where v lies next to a tie: at most `tolerance` steps away from it, and by one
code. How far the arithmetic of an operation is from that of real numbers, it says itself (`Node.tolerance`, with the
derivation); the tolerance is the sum over the nodes between.

Anything else that differs is a fault of preparation or conversion: an operation dropped or taken for another, the wrong
batch-norm, a clamp forgotten, strides swapped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor, fx

from lowbit.errors import LowbitError
from lowbit.integer.graph import Graph, Node, TensorType
from lowbit.integer.ops import Constant
from lowbit.integer.result import Mismatch
from lowbit.integer.roundings import get_rounding
from lowbit.integer.run import executed
from lowbit.integer.settings import reference_arithmetic
from lowbit.lowering.exact import ExactNetwork
from lowbit.lowering.trained import Places, trained_runner

_ELEMENTS_AT_ONCE = 1 << 26
"""Of all tensors of the samples that are looked at together."""
_ELEMENTS_OF_A_TRIAL = 1 << 20
_ELEMENTS_SCRAMBLED = 1 << 22
_ELEMENTS_OF_A_BLOCK = 1 << 17
"""Of a tensor that is compared: in float64 they fit a cache, and no memory is asked of the system for them."""

Exact = Iterator[tuple[str, Tensor | None]]
"""The exact values of tensors by name, as the trained network computes them; None for one that is not compared."""


class Proof:
    """Compares one trained network with its integer graph, on any number of batches.

    Args:
        model: the trained network that was converted. It is not changed.
        graph: its integer graph, validated.
        places: where the graph's tensors stand in the network; from `convert` too.

    Attributes:
        trained: the runner of the trained network.
    """

    def __init__(self, model: fx.GraphModule, graph: Graph, places: Places) -> None:
        self.graph = graph
        self.trained = trained_runner(model, graph, places)
        self._exact = ExactNetwork(model, graph, places)
        self._samples = max(2, _ELEMENTS_AT_ONCE // graph.elements())  # two, since one would be computed twice

    def __call__(
        self,
        inputs: Mapping[str, Tensor],
        codes: Mapping[str, Tensor] | None = None,
        *,
        local_differ: Counter[str] | None = None,
        scrambled: bool = False,
    ) -> dict[str, Mismatch]:
        """The tensors that differ, by name, in the graph's order; none where the integer network is the trained one.

        Args:
            inputs: float32 (batch, *shape) of every input, by name.
            codes: what `trained` gives of these inputs; None to run it.
            local_differ: to be added to: of each tensor, how many codes differ though those before them are the same.
            scrambled: let every operation take random codes of the whole grid, of the same shapes, instead of those
                that the trained network gives. What data seldom reach, as the ends of a table, is tried too.
        """
        found: dict[str, Mismatch] = {}
        count = len(next(iter(inputs.values())))
        for start in range(0, count, self._samples):
            part, given = (
                None if each is None else {name: x[start : start + self._samples] for name, x in each.items()}
                for each in (inputs, codes)
            )
            assert part is not None
            for mismatch in self._compare(part, given, scrambled, local_differ):
                if mismatch.name in found:
                    found[mismatch.name].count += mismatch.count
                else:
                    found[mismatch.name] = mismatch
        return found

    def _compare(
        self,
        inputs: Mapping[str, Tensor],
        given: Mapping[str, Tensor] | None,
        scrambled: bool,
        local_differ: Counter[str] | None,
    ) -> list[Mismatch]:
        samples = len(next(iter(inputs.values())))
        # At least two samples, so that nothing takes the batch for a dimension of size one.
        several, given = (
            each if samples > 1 or each is None else {name: torch.cat([x, x]) for name, x in each.items()}
            for each in (inputs, given)
        )
        assert several is not None
        with reference_arithmetic():
            codes, exact = self.expected(several, given, scrambled)
            codes = {name: x[:samples] for name, x in codes.items()}
            exact = ((name, None if x is None else x[:samples]) for name, x in exact)
            return self._compare_nodes(inputs, codes, exact, local_differ)

    def expected(
        self, inputs: Mapping[str, Tensor], given: Mapping[str, Tensor] | None, scrambled: bool
    ) -> tuple[Mapping[str, Tensor], Exact]:
        """The codes that operations take, and the exact value of each tensor that is put on a grid, by name.

        given: the trained network's codes, where it has been run.
        """
        codes = self.trained(inputs).codes if given is None else given
        if not scrambled:
            return codes, self._exact(inputs, codes)
        same = {name for place, name in self._exact.places.items() if place.layout.axis is None}
        codes = _random_codes(codes, self._exact.grids, self.graph, same)
        # What is a part of another tensor has that one's codes; whether it is the right part the data say.
        moved, known = set(), set(codes)
        for node in self.graph.nodes:
            if not node.moves_codes or not any(name in known for name in node.inputs):
                continue
            known.add(node.name)
            if node.name not in codes:
                continue
            moved.add(node.name)
            if all(name in codes for name in node.inputs):
                parts = [codes[name] for name in node.inputs]
                types, samples = self.graph.input_types(node), len(parts[0])
                codes[node.name] = executed(node, parts, types, get_rounding("float"), samples)
        return codes, ((name, None if name in moved else x) for name, x in self._exact(inputs, codes))

    def _compare_nodes(
        self,
        inputs: Mapping[str, Tensor],
        codes: Mapping[str, Tensor],
        exact: Exact,
        local_differ: Counter[str] | None = None,
    ) -> list[Mismatch]:
        """Both networks run side by side, so that of all the tensors few are there at once."""
        graph, rounding = self.graph, get_rounding("float")
        samples = len(next(iter(inputs.values())))
        values: dict[str, Tensor] = dict(inputs)
        # How far the arithmetic that the trained network repeats may be from real numbers: since the last codes that
        # are given, and, for what only moves these, in them too. A quantizer behind the move rounds the same value.
        slack: dict[str, float] = dict.fromkeys(inputs, 0.0)
        slack_if_moved = dict(slack)
        last_use = {name: node.name for node in graph.nodes for name in node.inputs}
        waiting: dict[str, Tensor | None] = {}
        found = []
        for node in graph.nodes:
            types = graph.input_types(node)
            value = executed(node, [values[name] for name in node.inputs], types, rounding, samples)
            tolerance = node.tolerance(types) + sum(
                (slack_if_moved if node.moves_codes else slack)[name] for name in node.inputs
            )
            if node.name in self._exact.names:
                while node.name not in waiting:
                    waiting.update([next(exact)])
                trained, grid = waiting.pop(node.name), self._exact.grids.get(node.name)
                mismatch = None if trained is None else _mismatch(node, value, trained, grid, tolerance)
                if mismatch is not None:
                    found.append(mismatch)
            given = node.name in codes
            if given and local_differ is not None:
                local_differ[node.name] += int((value != codes[node.name]).sum())
            values[node.name] = codes[node.name].to(value.dtype) if given else value
            slack_if_moved[node.name] = tolerance
            slack[node.name] = 0.0 if given else node.tolerance(types) + sum(slack[name] for name in node.inputs)
            for name in node.inputs:
                if last_use[name] == node.name:
                    values.pop(name, None)
        for _ in exact:  # to its end, where it says what is missing
            pass
        return found


def _mismatch(node: Node, value: Tensor, exact: Tensor, y: TensorType | None, tolerance: float) -> Mismatch | None:
    """What of the node's value is neither the exact value's on the trained network's grid y nor next to a tie.

    None where nothing is.
    """
    if y is None:
        wrong = ~((value.double() - exact).abs() <= tolerance)
        if not bool(wrong.any()):
            return None
        place = tuple(wrong.nonzero()[0].tolist())
        return Mismatch(node.name, int(wrong.sum()), float(value[place]), float(exact[place]))
    count, first = 0, (0.0, 0.0)
    pieces = (x.reshape(-1).split(_ELEMENTS_OF_A_BLOCK) for x in (value, exact))
    for codes, real in zip(*pieces, strict=True):
        trained = real / y.scale
        clipped = trained.clamp(y.qn - y.zero_point, y.qp - y.zero_point).add_(y.zero_point)
        if bool((clipped - codes).abs_().amax() < 0.5):  # the rule; not where there is a NaN
            continue
        wrong = clipped.round_() != codes
        trained += y.zero_point
        to_tie = (trained - trained.floor() - 0.5).abs()
        wrong &= ~((to_tie <= tolerance) & ((codes - trained).abs() <= 0.5 + tolerance))
        if bool(wrong.any()):
            place = int(wrong.nonzero()[0])
            first = first if count else (float(codes[place]), float(trained[place]))
            count += int(wrong.sum())
    return Mismatch(node.name, count, *first) if count else None


def check_equal(proof: Proof, examples: Mapping[str, Tensor]) -> None:
    """Refuse an integer graph that computes something else than the network it was made from.

    It is tried on `trial_inputs`, and on random codes.

    Raises:
        LowbitError: naming the first node that differs, with both values.
    """
    graph = proof.graph
    for mismatch in trial(proof, trial_inputs(graph, examples)).values():
        operation = type(graph.by_name[mismatch.name]).__name__
        raise LowbitError(
            f"node {mismatch.name!r} ({operation}) would not compute what the trained network does: {mismatch.text()}. "
            "An operation before it behaves in another way than its integer form: write it in another way or leave it "
            "out, and please report it"
        )


def trial(proof: Proof, inputs: Mapping[str, Tensor]) -> dict[str, Mismatch]:
    """What differs on the inputs; if nothing does, on random codes too, where that is little work."""
    elements = len(next(iter(inputs.values()))) * proof.graph.elements()
    return proof(inputs) or (proof(inputs, scrambled=True) if elements <= _ELEMENTS_SCRAMBLED else {})


def _random_codes(
    codes: Mapping[str, Tensor], grids: Mapping[str, TensorType], graph: Graph, same: Collection[str]
) -> dict[str, Tensor]:
    """Seeded codes of the same shapes, equally distributed over each grid; constants stay what they are.

    same: the tensors that are the same for every sample.
    """
    generator = torch.Generator("cpu").manual_seed(0)

    def random(name: str, x: Tensor) -> Tensor:
        found = torch.randint(grids[name].qn, grids[name].qp + 1, x.shape, generator=generator).to(x.dtype)
        found = found[:1].expand_as(found) if name in same else found
        return x if isinstance(graph.by_name[name], Constant) else found

    return {name: random(name, x) for name, x in codes.items()}


def trial_inputs(graph: Graph, examples: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The examples' first samples, and as many random ones.

    One each of a large network, several where that is little work.

    A tensor of 2 bits with one position tells little of one sample.
    """
    samples = min(max(_ELEMENTS_OF_A_TRIAL // graph.elements(), 1), 4)
    random = random_inputs(graph, samples)
    return {name: torch.cat([examples[name].detach()[:samples].cpu().to(x.dtype), x]) for name, x in random.items()}


def random_inputs(graph: Graph, samples: int) -> dict[str, Tensor]:
    """Seeded samples of every input, whose values cover the input's grid and a little beyond it, or all its indices."""
    generator, found, limits = torch.Generator("cpu").manual_seed(0), {}, graph.index_limits()
    for name, shape in graph.inputs.items():
        if name in limits:
            found[name] = torch.randint(limits[name], (samples, *shape), generator=generator, device="cpu")
            continue
        kind = next((node.codes_of() for node in graph.nodes if name in node.inputs), None)
        low, high = (0.0, 1.0) if kind is None else (kind.scale * (end - kind.zero_point) for end in (kind.qn, kind.qp))
        values = torch.rand(samples, *shape, generator=generator, dtype=torch.float32, device="cpu")
        found[name] = values * 1.1 * (high - low) + low - 0.05 * (high - low)
    return found
