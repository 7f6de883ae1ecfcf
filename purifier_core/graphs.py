"""A training step as a CUDA graph, launched whole. Launching kernel by kernel takes most of a small step's time."""

import warnings
from collections.abc import Callable

import torch

_WARM_UP = 3  # eager steps before the capture: they create what the optimizer and cuDNN keep
_CLOSE = 0.05  # of the length of a step: how far a replayed step may be from the eager one


class Replayed:
    """A step that, on a GPU, replays what it did; call it with the indices (B,) of a batch, on the device.

    Batches of `size` images are replayed, after the first few; any other, such as a last and smaller one, runs eagerly.
    `step` must do the same for every batch of that size, on the same tensors. Whatever changes between two calls is
    written into tensors that `step` reads. `state` gives the tensors that `step` changes; the first `parameters` of
    them are those it trains. `forget` drops the gradients, which one call leaves to the next.

    The first replay is compared with an eager step from the same state. A step that cannot be captured, or that goes
    elsewhere when it is replayed, goes on eagerly, with a warning.
    """

    def __init__(
        self,
        step: Callable[[torch.Tensor], object],
        size: int,
        parameters: int,
        state: Callable[[], list[torch.Tensor]],
        forget: Callable[[], object],
    ) -> None:
        self.step = step
        self.size = size
        self.parameters = parameters
        self.state = state
        self.forget = forget
        self.seen = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.index = torch.empty(0)

    def __call__(self, index: torch.Tensor) -> None:
        if len(index) != self.size:
            self.step(index)
            return
        self.seen += 1
        if self.graph:
            self._replay(index)
        elif self.seen == _WARM_UP:
            self._begin(index)
        elif self.seen < _WARM_UP:
            self._aside(index)
        else:
            self.step(index)

    def _replay(self, index: torch.Tensor) -> None:
        assert self.graph is not None
        self.index.copy_(index)
        self.graph.replay()

    def _aside(self, index: torch.Tensor) -> None:
        """An eager step on another stream, as a capture will be."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.step(index)
        torch.cuda.current_stream().wait_stream(stream)

    @torch.no_grad()
    def _write(self, values: list[torch.Tensor]) -> None:
        for tensor, value in zip(self.state(), values, strict=True):
            tensor.copy_(value)

    def _begin(self, index: torch.Tensor) -> None:
        """One step: eagerly, then again from the same state as a graph. The graph stays if both give the same."""
        before = [tensor.detach().clone() for tensor in self.state()]
        self._aside(index)
        eager = [tensor.detach().clone() for tensor in self.state()]
        try:
            self._capture(index)
            self._write(before)
            self._replay(index)
            replayed = [tensor.detach() for tensor in self.state()]
            off, moved = (distance(state[: self.parameters], eager[: self.parameters]) for state in (replayed, before))
            off /= moved or 1
            problem = "" if off < _CLOSE else f"replayed, it is {off:.0%} of its length off"
        except RuntimeError as error:
            problem = str(error)
        if problem:
            self.graph = None
            self.forget()
            self._write(eager)
            warnings.warn(f"this step cannot be a CUDA graph ({problem}); it runs without one, slower", stacklevel=2)

    def _capture(self, index: torch.Tensor) -> None:
        """Note what a step does, without doing it."""
        self.index = index.clone()
        self.forget()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step(self.index)
        self.graph = graph


def distance(some: list[torch.Tensor], others: list[torch.Tensor]) -> float:
    """The Euclidean distance between two lists of tensors of the same shapes."""
    return sum(float((a - b).double().square().sum()) for a, b in zip(some, others, strict=True)) ** 0.5
