"""From the outputs of a batch to those of a message."""

from __future__ import annotations

from streamcell.service.sessions.session import Output, Work


class Cutter:
    """Cuts messages' outputs out of a batch's; `sizes` are the bytes of a timestep of each output."""

    def __init__(self, sizes: list[int]) -> None:
        self._sizes = sizes

    def steps(self, outputs: list[bytes], offsets: list[int], steps: int) -> list[bytes]:
        """`steps` timesteps of each output, from its offset on."""
        return [
            data[offset : offset + steps * size]
            for data, offset, size in zip(outputs, offsets, self._sizes, strict=True)
        ]

    def cut(
        self, work: Work, start: int, count: int, outputs: list[bytes], offsets: list[int]
    ) -> list[bytes] | None:
        """This part's outputs, joined with those of the parts before; None while the message has parts to come."""
        last = start + count == work.steps
        if work.output is Output.NONE:
            return [] if last else None
        if work.output is Output.LAST:
            if not last:
                return None
            ends = [offset + (count - 1) * size for offset, size in zip(offsets, self._sizes, strict=True)]
            return self.steps(outputs, ends, 1)
        tensors = self.steps(outputs, offsets, count)
        if last and work.pieces is None:
            return tensors
        if work.pieces is None:
            work.pieces = [[] for _ in tensors]
        for pieces, tensor in zip(work.pieces, tensors, strict=True):
            pieces.append(tensor)
        return [b"".join(pieces) for pieces in work.pieces] if last else None
