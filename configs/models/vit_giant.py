"""A vision transformer of the size of ViT-g: width 1,408, 40 blocks, 16 heads.

Zhai et al. 2022, "Scaling vision transformers", table 2, whose MLP is 6,144 wide; ours are four
times the width of the stream, 5,632. A config takes it with `imports`.
"""

from distill_jax.models import register
from distill_jax.models.vision.vit import DeiT

register("vit_giant", DeiT, 1408, 16, 40)
