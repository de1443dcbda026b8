"""Export a trained `RecurrentNetwork` as an ONNX graph: standardisation, LSTM layers, head and sigmoid in one file.

The graph is written node by node: torch's tracing exporter is deprecated and fixes the batch size of its example in the
LSTM's first state, and its successor needs another package. The same weights give the same bytes.
"""

from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from pipelines.models.networks import RecurrentNetwork, Singles

OPSET = 17
IR = 8


def recurrent_to_onnx(network: RecurrentNetwork, steps: int, name: str) -> bytes:
    """Return the graph: "rows" (n, steps, inputs) float32 in the columns' units → "probabilities" (n, outputs)."""
    nodes, weights = [], []

    def constant(key: str, values: Any) -> str:
        """Add a constant and return its name."""
        weights.append(numpy_helper.from_array(np.ascontiguousarray(values), key))
        return key

    def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    centred = node("Sub", ["rows", constant("mean", _numbers(network.mean))], "centred")
    scaled = node("Div", [centred, constant("scale", _numbers(network.scale))], "scaled")
    x = node("Transpose", [scaled], "by_step", perm=[1, 0, 2])  # ONNX's LSTM wants (steps, n, width)
    last = len(network.layers) - 1
    for i, layer in enumerate(network.layers):
        inputs = [x, *(constant(f"lstm{i}_{part}", values) for part, values in _lstm(layer).items())]
        outputs = ["", f"newest{i}"] if i == last else [f"states{i}"]
        nodes.append(helper.make_node("LSTM", inputs, outputs, name=f"lstm{i}", hidden_size=layer.hidden_size))
        axis = constant(f"axis{i}", np.array([0 if i == last else 1]))  # a single direction
        x = node("Squeeze", [outputs[-1], axis], f"out{i}")
    for i, dense in enumerate(network.head):
        parts = [constant(f"head{i}_{part}", _numbers(getattr(dense, part))) for part in ("weight", "bias")]
        x = node("Gemm", [x, *parts], f"dense{i}", transB=1)
        if i < len(network.head) - 1:
            x = node("Relu", [x], f"relu{i}")
    node("Sigmoid", [x], "probabilities")
    shape = ["n", steps, network.layers[0].input_size]
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", network.head[-1].out_features])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
    return bytes(model.SerializeToString(deterministic=True))


def _numbers(tensor: Any) -> Singles:
    """Return a torch tensor as float32."""
    return np.asarray(tensor.detach().cpu().numpy(), dtype=np.float32)


def _lstm(layer: nn.LSTM) -> dict[str, Singles]:
    """Return W, R, B of an LSTM layer, each with a directions axis, as ONNX orders the gates.

    ONNX: input, output, forget, cell. torch: input, forget, cell, output.
    """

    def gates(values: Singles) -> Singles:
        """Return `values` with the gates in ONNX's order."""
        i, f, c, o = np.split(values, 4)
        return np.concatenate([i, o, f, c])

    w, r, bw, br = (
        gates(_numbers(getattr(layer, f"{part}_l0"))) for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    return {"W": w[None], "R": r[None], "B": np.concatenate([bw, br])[None]}
