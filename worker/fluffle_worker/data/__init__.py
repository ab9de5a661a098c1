"""What a worker does with its data before and during training: reading, cleaning, balancing, augmentation.

Everything is fitted on the training rows of this site, and nothing of it leaves the machine. No Keras: what
acts inside the training step stands in `fluffle_worker.keras_task`.
"""

from fluffle_worker.data.settings import DataSteps
from fluffle_worker.data.stored.cache import Cache
from fluffle_worker.data.stored.dataset import Dataset, open_dataset

__all__ = ["Cache", "DataSteps", "Dataset", "open_dataset"]
