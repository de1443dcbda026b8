"""Build a network again from the arrays of its ONNX file, for a card. Nothing is unpickled: the file holds numbers.

The inverse of `recurrent_onnx` and `pattern_onnx`: one file of a bundle serves both devices, so they cannot differ, and
bundles of earlier releases run on a card as well.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from pipelines.contracts import Arrays
from pipelines.models.networks import RecurrentNetwork, Singles
from pipelines.models.pattern_network import PatternNetwork

N = TypeVar("N", bound=nn.Module)


class Probabilities(nn.Module):
    """Map windows (n, steps, columns) float32 to probabilities (n, outputs), as the ONNX graph of a network does.

    present  position of the first column that says on the newest step which class is present; a class that is not has
             the probability 0. None = there are no such columns
    """

    def __init__(self, network: nn.Module, present: int | None) -> None:
        """Take a network of logits."""
        super().__init__()
        self.network, self.present = network, present

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """Return the probabilities, float32."""
        p = torch.sigmoid(self.network(windows).float())
        return p if self.present is None else p * windows[:, -1, self.present :].abs()


def arrays_of(path: Path) -> Arrays:
    """Return name → array of everything that an ONNX file stores by name."""
    return {one.name: numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer}


def network_of(arrays: Mapping[str, Singles]) -> Probabilities | None:
    """Return the network whose weights these are, on the CPU and in evaluation mode; None where they are of none."""
    found = None
    if "lstm0_W" in arrays:
        found = Probabilities(_recurrent(arrays), None)
    elif "convolution0_weight" in arrays:
        found = Probabilities(_pattern(arrays), len(arrays["source"]))
    if found is not None:
        found.eval()
    return found


def _recurrent(arrays: Mapping[str, Singles]) -> RecurrentNetwork:
    """Return the recurrent network of `recurrent_onnx.recurrent_to_onnx`."""
    depth = sum(name.endswith("_W") for name in arrays)
    heads = sum(name.startswith("head") and name.endswith("_weight") for name in arrays)
    inputs, widths = arrays["lstm0_W"].shape[2], [arrays[f"lstm{i}_R"].shape[2] for i in range(depth)]
    outputs = [len(arrays[f"head{i}_bias"]) for i in range(heads)]
    network = RecurrentNetwork(inputs, widths, outputs[:-1], dropout=0.0, outputs=outputs[-1])
    state = {"mean": arrays["mean"], "scale": arrays["scale"]}
    for i in range(depth):
        both = np.split(arrays[f"lstm{i}_B"][0], 2)
        parts = {"weight_ih": arrays[f"lstm{i}_W"][0], "weight_hh": arrays[f"lstm{i}_R"][0]}
        parts |= {"bias_ih": both[0], "bias_hh": both[1]}
        state |= {f"layers.{i}.{part}_l0": _gates(values) for part, values in parts.items()}
    for i in range(heads):
        state |= {f"head.{i}.{part}": arrays[f"head{i}_{part}"] for part in ("weight", "bias")}
    return _loaded(network, state)


def _pattern(arrays: Mapping[str, Singles]) -> PatternNetwork:
    """Return the convolutional network of `pattern_onnx.network_to_onnx`."""
    classes, channels = len(arrays["head_bias"]), len(arrays["convolution0_bias"])
    network = PatternNetwork(arrays["source"].tolist(), arrays["sign"].tolist(), classes, channels, dropout=0.0)
    state = {name: arrays[name] for name in ("source", "sign", "mean", "scale")}
    for i in range(len(network.convolutions)):
        state |= {f"convolutions.{i}.{part}": arrays[f"convolution{i}_{part}"] for part in ("weight", "bias")}
    state |= {f"head.{part}": arrays[f"head_{part}"] for part in ("weight", "bias")}
    return _loaded(network, state)


def _gates(values: Singles) -> Singles:
    """Return LSTM weights with the gates as torch orders them. ONNX: input, output, forget, cell."""
    i, o, f, c = np.split(values, 4)
    return np.concatenate([i, f, c, o])


def _loaded(network: N, state: Mapping[str, Singles]) -> N:
    """Return the network with these weights; every one of its own must be among them."""
    network.load_state_dict({name: torch.from_numpy(np.array(values)) for name, values in state.items()})
    return network
