"""Local Relation Networks in Flax NNX.

model = lrnet_jax.create_model("lrnet50", num_classes=1000, rngs=nnx.Rngs(0))
logits = model(images)  # normalised, floating point, (B, H, W, 3)
classifier = lrnet_jax.load_classifier("runs/lrnet50")
guesses = classifier.predict("cat.jpg")
model, metadata = lrnet_jax.load_checkpoint("runs/lrnet50")
"""

from lrnet_jax.classifier import Classifier, load_classifier
from lrnet_jax.exported import Exported, load_exported
from lrnet_jax.layers.local_relation import LocalRelation
from lrnet_jax.loading import load_checkpoint
from lrnet_jax.model_zoo import create_from_variant, create_model, get_variant, list_models
from lrnet_jax.networks import Network, fold_priors
from lrnet_jax.preprocessing import Preprocessing
from lrnet_jax.variant import Variant

__all__ = [
    "Classifier",
    "Exported",
    "LocalRelation",
    "Network",
    "Preprocessing",
    "Variant",
    "create_from_variant",
    "create_model",
    "fold_priors",
    "get_variant",
    "list_models",
    "load_checkpoint",
    "load_classifier",
    "load_exported",
]

__version__ = "0.1.0"
