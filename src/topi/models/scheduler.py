"""The noise schedule that the stand-in and the tiny pipelines share."""

from diffusers import FlowMatchEulerDiscreteScheduler


def flux_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Kontext's own schedule; at 256 target tokens its shift is exp(0.5)."""
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
        shift=3.0,
    )
