"""An ONNX graph under construction: nodes by name, weights straight to a file beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, TensorProto, checker, helper, save

from build_engines.int4_weights import packed

OPSET = 24  # the first with TensorScatter
IR_VERSION = 11
_ALIGNMENT = 4096  # of weights in their file, so that it can be mapped into memory
_SMALL = 1024  # bytes up to which a constant stays inside the graph

Shape = Sequence[int | str]


class Graph:
    """Values are named by strings; each method adds one node and returns the name of its output."""

    def __init__(self, directory: Path, name: str) -> None:
        """`directory` gets `name` when `save` is called, and at once `name`.data, which the weights go to."""
        self._path = directory / name
        self._weights: BinaryIO = open(directory / f"{name}.data", "wb")  # noqa: SIM115 - closed by `save`
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []

    def input(self, name: str, dtype: int, shape: Shape) -> str:
        """An input of the whole graph; strings in `shape` are free dimensions."""
        self._inputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))
        return name

    def output(self, name: str, dtype: int, shape: Shape) -> None:
        """Make the value `name` an output of the whole graph."""
        self._outputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))

    def add(self, operator: str, *inputs: str, name: str = "", outputs: int = 1, **attributes: Any) -> str:
        """A node of one output; with more, their names are `name`.0, `name`.1, and so on."""
        name = name or f"{operator.lower()}.{len(self._nodes)}"
        names = [name] if outputs == 1 else [f"{name}.{index}" for index in range(outputs)]
        self._nodes.append(helper.make_node(operator, list(inputs), names, name=name, **attributes))
        return name

    def constant(self, name: str, value: npt.NDArray[Any]) -> str:
        """A weight. The same name twice is the same weight."""
        if name not in self._constants:
            value = np.ascontiguousarray(value)
            tensor = TensorProto(name=name, dims=value.shape, data_type=helper.np_dtype_to_tensor_dtype(value.dtype))
            if value.nbytes <= _SMALL:
                tensor.raw_data = value.tobytes()
            else:
                self._store(tensor, value)
            self._constants[name] = tensor
        return name

    def int4(self, name: str, value: npt.NDArray[np.int8]) -> str:
        """A weight of numbers from -8 to 7, two to a byte."""
        if name not in self._constants:
            tensor = TensorProto(name=name, dims=value.shape, data_type=TensorProto.INT4)
            self._store(tensor, packed(np.bitwise_and(np.ascontiguousarray(value).view(np.uint8), 15, dtype=np.uint8)))
            self._constants[name] = tensor
        return name

    def integers(self, *values: int) -> str:
        """A constant int64 [len(values)]."""
        return self.constant(f"int64.{'.'.join(map(str, values))}", np.array(values, np.int64))

    def save(self) -> Path:
        """Check and write the graph; returns its path."""
        self._weights.close()
        graph = helper.make_graph(
            self._nodes, self._path.stem, self._inputs, self._outputs, list(self._constants.values())
        )
        model: ModelProto = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="tandem"
        )
        save(model, str(self._path))
        checker.check_model(str(self._path))
        return self._path

    def _store(self, tensor: TensorProto, value: npt.NDArray[Any]) -> None:
        self._weights.write(b"\0" * (-self._weights.tell() % _ALIGNMENT))
        tensor.data_location = TensorProto.EXTERNAL
        facts = {"location": f"{self._path.name}.data", "offset": self._weights.tell(), "length": value.nbytes}
        for key, fact in facts.items():
            tensor.external_data.add(key=key, value=str(fact))
        self._weights.write(value.data)
