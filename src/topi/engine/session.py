"""A method attached to a transformer: hooks in, calls tracked, hooks out."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from threading import Lock
from typing import Any

from topi.engine.call import Call, CallRecord
from topi.engine.caller import PipelineCall, current_pipeline_call
from topi.engine.compiling import refuse_frozen_hooks
from topi.engine.conflicts import refuse_other_holders, refuse_residuals, refuse_what_cannot_work
from topi.engine.hooks import RootHook, hooked, lists_anew
from topi.engine.inside import Inside
from topi.engine.interface import (
    Planner,
)
from topi.engine.layers import Layers
from topi.engine.state import CallState
from topi.engine.tracker import StepTracker, steps_left
from topi.errors import ToPiError
from topi.models.adapter import Adapter
from topi.models.held import held

ATTACHED = "Another method is attached to this {}; leave its `with` block first."


class Session:
    """One method on one transformer, from attach to detach.

    Attributes:
        layers: carries out what the method wants in the layers of a call.
        is_attached: false as well for whoever has kept a hooked `forward` and calls it afterwards.

    Args:
        trim_last: in the last block, whose outputs of reference tokens nobody reads, compute keys
            and values of these tokens only. Exact; methods that merge tokens are left alone.
    """

    def __init__(
        self,
        adapter: Adapter,
        method: Planner,
        pipeline: Any = None,
        trim_last: bool = False,
    ) -> None:
        self.adapter = adapter
        self.method = method
        self.pipeline = pipeline
        self.layers = Layers(adapter, method, trim_last)
        self.tracker = StepTracker()
        self.is_attached = False
        self._taken = Lock()  # by the transformer call in progress
        self._n_steps: int | None = None

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hold the transformer; on leaving, also by an exception, it is as it was before.

        Raises:
            ToPiError: another method or a cache holds it, or it is compiled, offloaded or
                distributed in a way that no method can work with.
        """
        transformer = self.adapter.transformer
        with ExitStack() as undo:
            undo.enter_context(held([transformer], ATTACHED))
            refuse_what_cannot_work(self.adapter, self.layers.trim_last)
            undo.enter_context(lists_anew(transformer))
            undo.enter_context(hooked(transformer, RootHook(self)))
            self._inside = Inside(self, undo.enter_context(ExitStack()))
            self._inside.attach()
            undo.callback(self.reset)
            self.is_attached = True
            try:
                yield
            finally:
                self.is_attached = False
            self._refuse_another_transformer()

    def _refuse_another_transformer(self) -> None:
        """Raises ToPiError if the pipeline has got one, which ran without the method."""
        transformer = self.adapter.transformer
        current = getattr(self.pipeline, "transformer", None)
        current = getattr(current, "_orig_mod", current)
        if current not in (None, transformer):
            raise ToPiError(
                f"The pipeline has got another transformer inside the `with` block, which "
                f"{type(self.method).__name__} was not attached to; exchange it before."
            )

    def reset(self) -> None:
        """Forget the pipeline call; the trace stays until the next one begins."""
        self.tracker.reset()
        self.method.reset()
        self.layers.forget_kept()
        self.layers.state = CallState()

    def pipeline_call_ended(self) -> None:
        """Forget the pipeline call, unless it is another one that has ended."""
        caller = self.tracker.caller
        if caller is None or caller.is_same(current_pipeline_call()) or not caller.is_running():
            self.reset()

    @contextmanager
    def _alone(self) -> Iterator[PipelineCall | None]:
        """Keep other calls out of one transformer call; yields the pipeline call it is part of.

        Raises:
            ToPiError: another transformer call runs, or another pipeline call has not ended.
        """
        overlap = ToPiError(
            f"Two calls at once run through one {type(self.adapter.transformer).__name__} with "
            f"{self.method.name} attached, in two threads or one inside the other. Let one end "
            "before the next begins, or give each a transformer of its own."
        )
        if not self._taken.acquire(blocking=False):
            raise overlap
        try:
            caller, before = current_pipeline_call(), self.tracker.caller
            if before is not None and before.is_same(caller):
                caller = before
            elif before is not None and before.is_running():
                raise overlap
            yield caller
        finally:
            self._taken.release()

    @contextmanager
    def transformer_call(self, kwargs: Mapping[str, Any], context: str | None) -> Iterator[None]:
        """Surround one forward of the transformer."""
        with self._alone() as caller, self._placed(kwargs, context, caller):
            yield

    @contextmanager
    def _placed(
        self, kwargs: Mapping[str, Any], context: str | None, caller: PipelineCall | None
    ) -> Iterator[None]:
        """Surround one forward of the transformer, of which `caller` is the pipeline call."""
        self._inside.follow()
        refuse_frozen_hooks(self.adapter, self.pipeline, attached=True)
        refuse_other_holders(self.adapter, attached=True)
        layout = self.adapter.layout(kwargs, caller)
        states = kwargs["hidden_states"]
        scheduler = getattr(caller.pipeline if caller else self.pipeline, "scheduler", None)
        timestep = kwargs["timestep"].flatten()[0]
        begins, step, branch = self.tracker.observe(
            context,
            timestep,
            states,
            self.adapter.positions(kwargs),
            (layout.target_grid, layout.reference_grids, len(states), states.dtype, states.device),
            getattr(scheduler, "timesteps", None),
            caller,
            states[:, layout.n_target :],
        )
        if begins:
            self.method.reset()
            self.method.trace = []
            self._n_steps = steps_left(scheduler, float(timestep))
        if layout.n_reference == 0:  # nothing to work on: the model runs untouched
            yield
            return
        refuse_residuals(kwargs)
        record = CallRecord(step, branch, layout, len(states))
        call = Call(
            step,
            branch,
            layout,
            len(states),
            states.device,
            record,
            self._n_steps,
            states,
            timestep,
        )
        call = self.method.numbered(call)
        try:
            self.method.begin(call)
            self.layers.follow_plan(call, self.method.plan(call))
            self.layers.state.call = call
            yield
            self.method.end(call)
            self.method.trace.append(record)
        except BaseException:
            self.reset()
            raise
        finally:
            self.layers.state = CallState()
