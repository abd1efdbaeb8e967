"""AnyEdit's edit types (arXiv 2411.15738, Table 13), their spellings and the paper's categories."""

from topi.bench.data.sample import VISUAL

_TYPES = {
    "camera_move": ("movement", "outpaint", "resize", "rotation_change"),
    "global_edit": ("tone_transfer", "background_change", "style_change"),
    "implicit_change": ("relation", "implicit_change"),
    "local_edit": (
        "replace",
        "add",
        "remove",
        "color_alter",
        "appearance_alter",
        "material_change",
        "action_change",
        "counting",
        "textual_change",
    ),
    VISUAL: (
        "visual_material_transfer",
        "visual_reference",
        "visual_bbox",
        "visual_depth",
        "visual_scribble",
        "visual_segment",
        "visual_sketch",
    ),
}

#: edit type -> category; the 18 of the four categories, then the 7 visual ones
CATEGORY = {name: category for category, names in _TYPES.items() for name in names}

# AnyEdit's README and training code say "tune" for "tone"; anyedit-split drops the underscores.
_ALIASES = {"tunetransfer": "tone_transfer"} | {name.replace("_", ""): name for name in CATEGORY}


def edit_type(spelling: object) -> str | None:
    """The type that a spelling means ("tune_transfer", "stylechange", "Style Change"), if any."""
    letters = "".join(c for c in str(spelling).lower() if c.isalpha())
    return _ALIASES.get(letters)


def types_of(category: str) -> tuple[str, ...]:
    """The types of a category."""
    return _TYPES[category]
