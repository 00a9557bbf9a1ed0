"""Code that is compiled for the batch sizes that come, and batches fitted to the sizes there are.

That of CaiT takes a few images at a time on a CPU, as many as its cache has room for.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deit_zoo.machine import cxx_compiler

COMPILING = threading.Lock()  # torch's settings, and the recording of a graph, are the process's
MOST_SIZES = 4  # of a batch, that code is compiled for; others are padded or cut to them
NO_LIMIT = 1 << 30  # of pieces of code that torch holds at once
SCORES = 2_500_000  # bytes of talking heads' scores for each thread, beyond which a cache is slow

Run = Callable[[Tensor], Tensor]


class CompiledSizes:
    """A network that torch compiles when it is called, once for each batch size.

    `sizes` is what is called by the type of the images and their number; `image_scores` are the
    bytes of talking heads' scores of one image, 0 where they do not matter. Once it is `closed`, no
    further size of a type that is there is compiled.
    """

    def __init__(self, network: Run, image_scores: int) -> None:
        self.network, self.image_scores = network, image_scores
        self.sizes: dict[torch.dtype, dict[int, Run]] = {}
        self.closed = False

    def __call__(self, images: Tensor) -> Tensor:
        """Run code for this batch size, or a larger one that is there already."""
        if not len(images):
            return self(images.new_zeros(1, *images.shape[1:]))[:0]
        batch, compiled = len(images), self.sizes.setdefault(images.dtype, {})
        if self.image_scores:
            most = max(1, SCORES * torch.get_num_threads() // self.image_scores)
            if batch > most:
                return torch.cat([self(few) for few in torch.split(images, most)])
        fitting = min((size for size in list(compiled) if size >= batch), default=0)
        if fitting == batch:
            return compiled[batch](images)
        is_open = len(compiled) < (1 if self.closed else MOST_SIZES)
        if is_open and not batch <= fitting <= 2 * batch:
            compiled[batch], logits = self._compile(images)
            return logits
        if not fitting:
            return torch.cat([self(piece) for piece in torch.split(images, max(compiled))])
        missing = images.new_zeros(fitting - batch, *images.shape[1:])
        return compiled[fitting](torch.cat((images, missing)))[:batch]

    def _compile(self, images: Tensor) -> tuple[Run, Tensor]:
        """Code for this batch size, and the logits of these images, with which it is made."""
        from torch._dynamo import config as dynamo
        from torch._inductor import config

        # Read from the process where code is made; an option of one model does not reach it.
        # Torch counts the sizes of all models together, and runs those past its limit eagerly.
        limits = {"recompile_limit": NO_LIMIT, "accumulated_recompile_limit": NO_LIMIT}
        options: dict[str, Any] = {"freezing": True}
        if "CXX" in os.environ:  # torch reads it but once, when this is imported
            options["cpp.cxx"] = (None, cxx_compiler())
        with COMPILING, config.patch(options), dynamo.patch(limits):
            run = self.network
            if images.is_cuda:
                with torch.cuda.device(images.device):
                    run = CudaGraph(self.network, images)
            return run, run(images)


class CudaGraph:
    """Compiled code for one batch size whose kernels a GPU is given all at once.

    Any thread may call it: a call waits for the one before, and has its own copy of the logits.
    """

    def __init__(self, network: Run, images: Tensor) -> None:
        with torch.inference_mode(False):
            self.images = torch.empty_like(images)
        self.lock = threading.Lock()
        self.done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self.graph = torch.cuda.CUDAGraph()
        self.images.copy_(images)
        network(self.images)  # compiled, and set up, before anything is recorded
        stream = torch.cuda.Stream(images.device)  # type: ignore[no-untyped-call]
        with torch.cuda.graph(self.graph, stream=stream, capture_error_mode="thread_local"):
            self.logits = network(self.images)

    def __call__(self, images: Tensor) -> Tensor:
        stream = torch.cuda.current_stream(images.device)
        with self.lock:
            stream.wait_event(self.done)
            self.images.copy_(images)
            self.graph.replay()
            logits = self.logits.clone()
            self.done.record(stream)
        return logits
