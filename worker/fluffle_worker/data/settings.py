"""DataSteps: which steps a worker takes with its data."""

from typing import Annotated, ClassVar, Final, Literal

from pydantic import AfterValidator, Field

from fluffle.settings import TableSettings
from fluffle_worker.data.choices import Choice, Known, Number, choice_of

IMPUTE: Final[Known] = {
    **dict.fromkeys(("median", "mean", "most_frequent", "drop", "refuse")),
    "knn": Number(5, above=0, below=1000, is_whole=True),
}
CLIPPING: Final[Known] = {"quantiles": Number(0.01, above=0, below=0.5), "mad": Number(5, above=0)}
OUTLIERS: Final[Known] = {"keep": None, **CLIPPING, "forest": Number(0.01, above=0, below=0.5)}
# The ones in the second line act on the weights of rows, the next on which rows there are, the last on the
# loss.
WEIGHTS: Final[Known] = {"weights": None, "class_balanced": Number(0.999, above=0, below=1)}
LOSSES: Final[Known] = {
    "focal": Number(2, above=0),
    "balanced_softmax": Number(1, above=0),
    "fedlc": Number(1, above=0),
    "logit_adjustment": Number(1, above=0),
}
NEIGHBOURS: Final = Number(5, above=0, below=1000, is_whole=True)
ROWS: Final[Known] = {
    **dict.fromkeys(("oversample", "undersample")),
    **dict.fromkeys(("smote", "borderline_smote", "svm_smote", "adasyn"), NEIGHBOURS),
}
BALANCE: Final[Known] = {"none": None, **WEIGHTS, **ROWS, **LOSSES}
LABELS: Final[Known] = {"keep": None, "drop": None, "weigh": Number(0.1, above=0, below=1)}

AUGMENT: Final[Known] = {
    "noise": Number(0.1, above=0),
    "mask": Number(0.1, above=0, below=1),
    "mixup": Number(0.2, above=0),
    "jitter": Number(0.05, above=0),
    "scale": Number(0.1, above=0),
    "crop": Number(0.9, above=0, below=1),
    "time_mask": Number(0.1, above=0, below=1),
    "rand_augment": Number(0.5, above=0, below=1),
    "cutmix": Number(1, above=0),
    "erase": Number(0.5, above=0, below=1),
}


def _all_of(texts: tuple[str, ...]) -> tuple[str, ...]:
    for text in texts:
        choice_of("augment", text, AUGMENT)
    return texts


def _of(setting: str, known: Known) -> AfterValidator:
    def check(text: str) -> str:
        choice_of(setting, text, known)
        return text

    return AfterValidator(check)


class DataSteps(TableSettings):
    """The steps that a site's data goes through, for `KerasTask(data=...)` and the table [data] of a worker.

    Texts are a name, or a name and a number, such as "knn:5"; without the number they have its default. The
    defaults fill missing values with the median of the column, and leave everything else as it is.

    Raises ConfigError for an unknown name or a number that is out of range.
    """

    part: ClassVar[str] = "data"

    impute: Annotated[str, _of("impute", IMPUTE)] = Field(
        "median",
        description="What becomes of missing and infinite values: median, mean or most_frequent of the "
        "column, knn:NEIGHBOURS, drop (the row), or refuse (an error).",
    )
    indicator: bool = Field(
        False,
        description="Add one column for each column, which is 1 where the value was missing and 0 elsewhere: "
        "the model gets twice as many inputs.",
    )
    outliers: Annotated[str, _of("outliers", OUTLIERS)] = Field(
        "keep",
        description="What becomes of outliers: keep, quantiles:SHARE (clip to the quantiles SHARE and "
        "1 - SHARE of the column), mad:K (clip to K median absolute deviations around the median), or "
        "forest:SHARE (drop the SHARE of rows that an isolation forest finds most unusual).",
    )
    duplicates: Literal["keep", "drop"] = Field(
        "keep", description="Whether rows that are equal to an earlier row, with the same label, are dropped."
    )
    labels: Annotated[str, _of("labels", LABELS)] = Field(
        "keep",
        description="What becomes of rows whose label is probably wrong, as cross-validated confident "
        "learning finds them: keep (without looking for them), drop, or weigh:FACTOR (their weight is "
        "multiplied).",
    )
    balance: Annotated[str, _of("balance", BALANCE)] = Field(
        "none",
        description="How classes that are rare at this site gain weight. By weights: weights, "
        "class_balanced:BETA. By rows: oversample, undersample, smote:NEIGHBOURS, borderline_smote, "
        "svm_smote, adasyn. By the loss: focal:GAMMA, balanced_softmax:TAU, fedlc:TAU, and by the classes of "
        "all sites, as the federation's survey has found them, logit_adjustment:TAU.",
    )
    augment: Annotated[tuple[str, ...], AfterValidator(_all_of)] = Field(
        (),
        description="What changes each minibatch at random, in this order. Tables: noise:SD, mask:SHARE, "
        "mixup:ALPHA. Sequences: jitter:SD, scale:SD, crop:SHARE, time_mask:SHARE, mixup:ALPHA. Images: "
        "rand_augment:FACTOR, mixup:ALPHA, cutmix:FACTOR, erase:FACTOR.",
    )
    seed: int = Field(0, ge=0, description="Random seed of all steps.")

    @property
    def augmentations(self) -> tuple[Choice, ...]:
        """The augmentations as names and numbers."""
        return tuple(choice_of("augment", text, AUGMENT) for text in self.augment)

    def choice(self, setting: Literal["impute", "outliers", "labels", "balance"]) -> Choice:
        """Return one of the texts as a name and a number."""
        known = {"impute": IMPUTE, "outliers": OUTLIERS, "labels": LABELS, "balance": BALANCE}
        return choice_of(setting, getattr(self, setting), known[setting])
