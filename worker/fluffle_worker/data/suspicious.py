"""Rows whose label is probably wrong: cross-validated confident learning.

Source: Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels" (2021).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluffle_worker.data.optional import import_for
from fluffle_worker.data.rows import Labels

FOLDS = 5
# Where few rows teach the model, it errs often: a label is believed unless another is so much likelier.
LIKELIER = 3.0
# The inverse strength of the regularisation: weaker, the model would be too sure of what it learned by heart.
INVERSE_PENALTY = 0.1
# Above so many columns, the model that judges the labels sees the components with this share of the variance.
MOST_COLUMNS = 50
MOST_VARIANCE = 0.9


def suspicious_labels(table: NDArray[Any], labels: Labels, seed: int) -> NDArray[np.bool_]:
    """Return which rows of a table without missing values have a label that is probably wrong; [rows].

    A logistic regression judges each row after it has seen other rows only. Of those that confident learning
    finds, only those count for which it gives another class three times the probability of the label. Classes
    with fewer rows than there are folds are not judged. Raises TaskError where cleanlab is not installed.
    """
    step = "labels"
    cleanlab = import_for(step, "cleanlab.filter", extra="data")
    found = np.zeros(len(table), bool)
    judged = np.flatnonzero(labels.counts[labels.of_rows] >= FOLDS)
    classes, of_rows = np.unique(labels.of_rows[judged], return_inverse=True)
    if classes.size < 2:
        return found
    selection = import_for(step, "sklearn.model_selection", extra="worker")
    probabilities = selection.cross_val_predict(
        _judge(table.shape[1]),
        table[judged].astype(np.float64),
        of_rows,
        cv=selection.StratifiedKFold(FOLDS, shuffle=True, random_state=seed),
        method="predict_proba",
    )
    own = probabilities[np.arange(of_rows.size), of_rows]
    is_likelier = probabilities.max(axis=1) > LIKELIER * own
    found[judged] = cleanlab.find_label_issues(of_rows, probabilities, n_jobs=1) & is_likelier
    return found


def _judge(columns: int) -> Any:
    step = "labels"
    pipeline = import_for(step, "sklearn.pipeline", extra="worker")
    scale = import_for(step, "sklearn.preprocessing", extra="worker").StandardScaler()
    models = import_for(step, "sklearn.linear_model", extra="worker")
    # scikit-learn's default solver uses options of scipy that new versions of scipy no longer have.
    # Close to the optimum is near enough to judge a label, and takes a third of the time.
    linear = models.LogisticRegression(C=INVERSE_PENALTY, solver="newton-cg", max_iter=1000, tol=1e-2)
    if columns <= MOST_COLUMNS:
        return pipeline.make_pipeline(scale, linear)
    decomposition = import_for(step, "sklearn.decomposition", extra="worker")
    # The number of rows in a fold may be the smaller one: a share of the variance always works.
    components = decomposition.PCA(MOST_VARIANCE, svd_solver="covariance_eigh")
    return pipeline.make_pipeline(scale, components, linear)
