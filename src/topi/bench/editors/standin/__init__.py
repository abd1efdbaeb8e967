"""The stand-in editors: small models of the real architectures in the real pipeline classes.

They exist so that everything here runs without 12 B weights. Their numbers are stand-in numbers,
never those of FLUX or Qwen.
"""

from topi.bench.editors.standin.latents import BlockTransformVAE, ConvVAE
from topi.bench.editors.standin.weights import (
    FAMILIES,
    LATENTS,
    Family,
    load_parts,
    load_standin,
    save_standin,
    weights_file,
    weights_folder,
)

__all__ = [
    "FAMILIES",
    "LATENTS",
    "BlockTransformVAE",
    "ConvVAE",
    "Family",
    "load_parts",
    "load_standin",
    "save_standin",
    "weights_file",
    "weights_folder",
]
