"""A network as a sequence of blocks that run one after the other, each on the values that the ones before it left."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from lowbit.errors import LowbitError
from lowbit.layers.modes import evaluation
from lowbit.layers.quantized import QuantizedLayer
from lowbit.lowering.shapes import named_examples
from lowbit.lowering.trace import trace

Values = dict[fx.Node, Any]
"""What nodes have given, for a batch or for all samples."""

_MOST_LAYERS = 8
"""A block with more quantized layers than this is cut into its layers.

An attention and a bottleneck are blocks, a whole U-Net is not.
"""


@dataclass(frozen=True)
class Block:
    """Nodes that are run together.

    Attributes:
        nodes: in the order of the graph, with the constants that they use.
        inputs: the nodes before them whose values they take.
        outputs: those of the nodes whose values are used behind the block, or returned by the network.
        layers: names of the quantized layers among them.
    """

    nodes: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]
    layers: tuple[str, ...]

    def __str__(self) -> str:
        return self.layers[0] + (f" to {self.layers[-1]}" if len(self.layers) > 1 else "")


class Blocks(fx.Interpreter):
    """The blocks of a prepared network, and what runs them.

    A block ends where one tensor alone goes on, as behind a residual addition; between such places it ends before
    each quantized layer, where there are more than eight. What stands between layers goes with the layer before it.

    Args:
        model: a prepared network. Its parameters and buffers are those of the blocks; nothing of it is changed.
        example: inputs, as the network takes them.

    Raises:
        LowbitError: the network's forward cannot be recorded.
    """

    def __init__(self, model: nn.Module, example: Any) -> None:
        if not isinstance(model, fx.GraphModule):
            kept = {id(tensor): tensor for tensor in itertools.chain(model.parameters(), model.buffers())}
            mine = copy.deepcopy(model, kept)  # its modules are: recording puts some in and takes some apart
            model = fx.GraphModule(mine, trace(mine, named_examples(mine, example)))
        super().__init__(model)
        self.model = model
        self.blocks = self._cut(named_examples(model, example))

    @property
    def starts(self) -> list[fx.Node]:
        """The network's inputs."""
        return [node for node in self.model.graph.nodes if node.op == "placeholder" and node.users]

    def through(self, block: Block, values: Mapping[fx.Node, Any]) -> Values:
        """What the block's outputs are for its inputs."""
        self.env = {node: values[node] for node in block.inputs}
        for node in block.nodes:
            self.env[node] = self.run_node(node)
        return {node: self.env[node] for node in block.outputs}

    def _cut(self, examples: Mapping[str, Tensor]) -> list[Block]:
        nodes = list(self.model.graph.nodes)
        made = self._values(nodes, examples)
        batch = next(iter(examples.values())).shape[0]
        varying = {node for node in nodes if self._varies(node)}
        last = {node: max((nodes.index(user) for user in node.users), default=-1) for node in nodes}
        computed = [node for node in nodes if node in varying and node.op not in ("placeholder", "output")]

        def carried(place: int) -> list[fx.Node]:
            """What is computed before this place and used from there on."""
            return [node for node in nodes[:place] if node in varying and last[node] >= place]

        def is_layer(node: fx.Node) -> bool:
            return node.op == "call_module" and isinstance(self.fetch_attr(str(node.target)), QuantizedLayer)

        def splits(place: int) -> bool:
            """Whether samples lie along the first dimension of everything that is carried."""
            return all(
                isinstance(made[n], Tensor) and made[n].ndim and made[n].shape[0] == batch for n in carried(place)
            )

        places = [nodes.index(node) for node in computed if splits(nodes.index(node))]
        single = [place for place in places if len(carried(place)) == 1]
        bounds = sorted({*single, nodes.index(nodes[-1])})
        cuts: list[int] = []
        for start, stop in itertools.pairwise([0, *bounds]):
            inside = [node for node in nodes[start:stop] if is_layer(node)]
            cuts.append(start)
            if len(inside) > _MOST_LAYERS:
                cuts += [nodes.index(node) for node in inside[1:] if nodes.index(node) in places]
        pieces = [nodes[a:b] for a, b in itertools.pairwise([*cuts, bounds[-1]])]
        merged: list[list[fx.Node]] = []
        for piece in pieces:
            if merged and not (any(map(is_layer, piece)) and any(map(is_layer, merged[-1]))):
                merged[-1] += piece
            else:
                merged.append(list(piece))
        return [self._block(piece, varying) for piece in merged]

    def _block(self, piece: Sequence[fx.Node], varying: set[fx.Node]) -> Block:
        own = [node for node in piece if node in varying and node.op not in ("placeholder", "output")]
        wanted, constants, inputs = list(own), set(), []
        while wanted:
            for source in wanted.pop().all_input_nodes:
                if source not in varying and source not in constants:
                    constants.add(source)
                    wanted.append(source)
                elif source in varying and source not in own and source not in inputs:
                    inputs.append(source)
        run = [node for node in self.model.graph.nodes if node in constants or node in own]
        outputs = [node for node in own if any(user not in own for user in node.users)]
        layers = [
            str(n.target)
            for n in own
            if n.op == "call_module" and isinstance(self.fetch_attr(str(n.target)), QuantizedLayer)
        ]
        return Block(tuple(run), tuple(inputs), tuple(outputs), tuple(layers))

    def _varies(self, node: fx.Node) -> bool:
        """Whether it depends on the network's inputs."""
        found = node.meta.get("varies")
        if found is None:
            found = node.op == "placeholder" or any(map(self._varies, node.all_input_nodes))
            node.meta["varies"] = found
        return found

    @torch.no_grad()
    def _values(self, nodes: Sequence[fx.Node], examples: Mapping[str, Tensor]) -> Values:
        self.env = {}
        with evaluation(self.model):
            for node in nodes:
                if node.op == "placeholder":
                    self.env[node] = examples.get(str(node.target))
                elif node.op != "output":
                    self.env[node] = self.run_node(node)
        return self.env


def stacked(parts: Sequence[Values]) -> Values:
    """The values of several batches as those of one."""
    return {node: torch.cat([part[node] for part in parts]) for node in parts[0]}


def chosen(values: Mapping[fx.Node, Tensor], samples: Tensor | slice) -> Values:
    """The values of some of the samples."""
    return {node: value[samples] for node, value in values.items()}


def gathered(blocks: Blocks, batches: Sequence[Any]) -> Values:
    """All samples of the batches, by the network's input.

    Args:
        batches: inputs, (input, label) pairs or dictionaries by the names of the inputs.

    Raises:
        LowbitError: no samples, or batches that are not inputs of the network.
    """
    parts = []
    for batch in batches:
        given = batch[0] if isinstance(batch, (tuple, list)) else batch
        named = named_examples(blocks.model, given)
        missing = [str(node.target) for node in blocks.starts if str(node.target) not in named]
        if missing:
            raise LowbitError(
                f"a batch has no input {missing[0]!r}: give dictionaries by name, or a tensor of the one input"
            )
        parts.append({node: named[str(node.target)].detach() for node in blocks.starts})
    values = stacked(parts)
    if not len(next(iter(values.values()))):
        raise LowbitError("the batches hold no samples")
    return values
