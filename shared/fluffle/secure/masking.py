"""What a worker of secure aggregation does to an update before it is kept and sent."""

from dataclasses import dataclass, replace

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from fluffle.codecs.masked import MaskedVector
from fluffle.model import Vector, no_values
from fluffle.secure.limbs import encode_limbs
from fluffle.secure.masks import Masked, add_masks, mask_key
from fluffle.secure.modulus import Residues
from fluffle.secure.plan import SecurePlan
from fluffle.secure.registry import Registry
from fluffle.update import WeightUpdate


def whole_numbers(
    delta: Vector, values: NDArray[np.floating], plan: SecurePlan, random: np.random.Generator
) -> Residues:
    """Return a delta, float32, in whole numbers, as uint32 that are not masked yet.

    Behind them are those of `values`: the update's statistics, and what its site has measured.
    """
    return np.concatenate([plan.fixed_point.encode(delta, random), encode_limbs(values, plan.bits)])


@dataclass(frozen=True, slots=True)
class Masks:
    """The masks of one worker in one epoch."""

    registry: Registry
    private: X25519PrivateKey

    def masked(self, update: WeightUpdate, numbers: Residues, plan: SecurePlan) -> WeightUpdate:
        """Return an update that holds these numbers under its masks, and nothing else that it has learnt.

        The masks depend on the update's id: under another id it has to be masked anew. Raises ValueError for
        a group's public key with which nothing can be agreed on.
        """
        about = Masked(
            update.federation,
            self.registry.epoch,
            update.id,
            update.base_term,
            update.base_version,
            plan.honest,
        )
        publics = self.registry.public_group_keys
        keys = [mask_key(self.private, public, about, group) for group, public in enumerate(publics)]
        total = numbers.copy()
        add_masks(total, keys)
        return replace(
            update,
            codec=plan.codec,
            epoch=self.registry.epoch,
            vector=MaskedVector.masking(plan.modulus, total),
            statistics=no_values(),
            integers=b"",
            loss=None,
            examples=0,
            steps=0,
            batch_size=0,
            learning_rate_scale=1.0,
            revision=plan.revision,
        )
