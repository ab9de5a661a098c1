"""All features; docs/models.md has a row for each, in this order."""

from collections.abc import Mapping

from features.architectures import ARCHITECTURES
from features.data import DATA
from features.feature import Feature
from features.layers import LAYERS
from features.parts import PARTS
from features.training import TRAINING

FEATURES: Mapping[str, Feature] = {**ARCHITECTURES, **LAYERS, **TRAINING, **PARTS, **DATA}
