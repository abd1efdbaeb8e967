"""Takes hold of a diffusion transformer through its adapter."""

from topi.engine.call import Call, CallRecord, Merge
from topi.engine.session import Session

__all__ = ["Call", "CallRecord", "Merge", "Session"]
