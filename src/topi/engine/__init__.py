"""Takes hold of a diffusion transformer through its adapter."""

from topi.engine.call import BlockInput, Call, CallRecord, Merge
from topi.engine.interface import (
    FULL,
    CompletesOutput,
    FreezesTargets,
    GathersStates,
    MergesTokens,
    Plan,
    ReusesKeys,
    SkipsLayers,
    WatchesAttention,
    WeighsText,
    capable,
)
from topi.engine.session import Session

__all__ = ["FULL", "BlockInput", "Call", "CallRecord", "CompletesOutput", "FreezesTargets"]
__all__ += ["GathersStates", "Merge", "MergesTokens", "Plan", "ReusesKeys", "Session"]
__all__ += ["SkipsLayers", "WatchesAttention", "WeighsText", "capable"]
