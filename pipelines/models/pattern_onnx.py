"""Export the recogniser's network as an ONNX graph with one output "probabilities" (n, classes), 0 for an absent class.

It is written node by node with fixed names: the same model gives the same bytes.
"""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipelines.models.pattern_network import PatternNetwork

OPSET, IR = 15, 8


class _Graph:
    """Collect nodes and weights in the order they are added."""

    def __init__(self) -> None:
        """Start without nodes and weights."""
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def constant(self, name: str, values: Any) -> str:
        """Add a constant and return its name."""
        self.weights.append(numpy_helper.from_array(np.array(values, order="C"), name))
        return name

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def bytes(self, name: str, inputs: list[Any], classes: int) -> bytes:
        """Return the checked graph as bytes; `inputs` is the shape of "rows"."""
        graph = helper.make_graph(
            self.nodes,
            name,
            [helper.make_tensor_value_info("rows", TensorProto.FLOAT, inputs)],
            [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", classes])],
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
        onnx.checker.check_model(model)
        return bytes(model.SerializeToString(deterministic=True))


def network_to_onnx(network: PatternNetwork, steps: int, name: str) -> bytes:
    """Return the graph of rows (n, steps, columns of the network) float32, in the units of the columns."""
    g, inputs, classes = _Graph(), len(network.source), network.head.out_features
    market = g.node("Gather", ["rows", g.constant("market_places", np.arange(inputs))], "market", axis=2)
    newest = g.node("Gather", ["rows", g.constant("newest_place", np.array(steps - 1))], "newest", axis=1)
    side = g.node("Gather", [newest, g.constant("side_places", np.arange(inputs, inputs + classes))], "side", axis=1)
    turned = g.node("Gather", [market, g.constant("source", network.source.numpy())], "turned", axis=2)
    mirrored = g.node("Mul", [turned, g.constant("sign", _numbers(network.sign))], "mirrored")
    both = g.node("Concat", [market, mirrored], "both", axis=0)
    centred = g.node("Sub", [both, g.constant("mean", _numbers(network.mean))], "centred")
    scaled = g.node("Div", [centred, g.constant("scale", _numbers(network.scale))], "scaled")
    x = g.node("Transpose", [scaled], "by_channel", perm=[0, 2, 1])
    for i, layer in enumerate(network.convolutions):
        parts = [g.constant(f"convolution{i}_{part}", _numbers(getattr(layer, part))) for part in ("weight", "bias")]
        x = g.node(
            "Conv", [x, *parts], f"convolution{i}", kernel_shape=list(layer.kernel_size), strides=list(layer.stride),
            pads=[layer.padding[0], layer.padding[0]],
        )  # fmt: skip
        x = g.node("Relu", [x], f"relu{i}")
    mean = g.node("ReduceMean", [x], "pooled", axes=[2], keepdims=0)
    end = g.node("Gather", [x, g.constant("end", np.array(-1))], "end_step", axis=2)
    x = g.node("Concat", [mean, end], "summary", axis=1)
    head = [g.constant(f"head_{part}", _numbers(getattr(network.head, part))) for part in ("weight", "bias")]
    logits = g.node("Gemm", [x, *head], "logits", transB=1)
    g.nodes.append(helper.make_node("Split", [logits], ["rise", "fall"], name="sides", axis=0))
    rising = g.node("Greater", [side, g.constant("zero", np.array(0.0, np.float32))], "rising")
    own = g.node("Where", [rising, "rise", "fall"], "own")
    g.node("Mul", [g.node("Sigmoid", [own], "own_p"), g.node("Abs", [side], "present")], "probabilities")
    return g.bytes(name, ["n", steps, inputs + classes], classes)


def _numbers(tensor: Any) -> Any:
    """Return a torch tensor as a float32 array."""
    return np.asarray(tensor.detach().cpu().numpy(), dtype=np.float32)
