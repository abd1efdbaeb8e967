"""Takes hold of a diffusion transformer through its adapter."""

from topi.engine.call import BlockInput, Call, CallRecord, Merge
from topi.engine.session import Session

__all__ = ["BlockInput", "Call", "CallRecord", "Merge", "Session"]
