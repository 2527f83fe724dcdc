"""Probes on the features of a frozen model: does what it rebuilds still say which category the cloud is of?"""

from __future__ import annotations

from dataclasses import dataclass
from math import nan
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from anomaly3d.ice.features import CloudFeatures


@dataclass(frozen=True)
class Entanglement:
    """What the probes found on the normal test clouds.

    Attributes:
        predicted: category that the MLP sees in each cloud's reconstruction.
        score: the MLP's probability of the true category, in [0, 1].
        accuracy: share of the clouds whose category the MLP names.
        pearson: correlation of score and reconstruction error; NaN where one of them is constant.
        spearman: the same of their ranks.
        between: Spearman's coefficient of the categories' means of both.
        within: mean over the categories of the coefficient among a category's own clouds.
        linear: accuracy of the linear probes, by what they read (`CloudFeatures.encoded`).
    """

    predicted: Int[np.ndarray, " n"]
    score: Float[np.ndarray, " n"]
    accuracy: float
    pearson: float
    spearman: float
    between: float
    within: float
    linear: dict[str, float]


def entanglement(fitted: CloudFeatures, tested: CloudFeatures, seed: int = 0, hidden: int = 64) -> Entanglement:
    """Fit the probes on one set of clouds and read them on another (SeDiR, Fig. 2 and Table S8).

    The category score of Fig. 2 is the true category's probability according to an MLP with one hidden layer of
    `hidden` units on the mean reconstructed token [64 inferred: the paper says "light"]; a linear probe is a logistic
    regression with scikit-learn's penalty [inferred: the paper says "linear"]. All of them see standardised features.
    Every category must be among the fitted clouds.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier

    light = _probe(MLPClassifier((hidden,), max_iter=2000, random_state=seed))
    light.fit(fitted.rebuilt, fitted.category)
    probability = light.predict_proba(tested.rebuilt)
    column = np.searchsorted(light.classes_, tested.category)
    score = probability[np.arange(len(column)), column]
    predicted = light.classes_[probability.argmax(1)]
    pearson, spearman = correlations(score, tested.error)
    linear = {
        kind: float(
            _probe(LogisticRegression(max_iter=2000))
            .fit(features, fitted.category)
            .score(tested.encoded[kind], tested.category)
        )
        for kind, features in fitted.encoded.items()
    }
    between, within = by_category(score, tested.error, tested.category)
    accuracy = float((predicted == tested.category).mean())
    return Entanglement(predicted, score, accuracy, pearson, spearman, between, within, linear)


def by_category(
    score: Float[np.ndarray, " n"], error: Float[np.ndarray, " n"], category: Int[np.ndarray, " n"]
) -> tuple[float, float]:
    """Spearman's coefficient of the categories' means, and the mean of the categories' own; NaN for none."""
    groups = [(score[category == one], error[category == one]) for one in np.unique(category)]
    between = correlations(*(np.array([part[i].mean() for part in groups]) for i in (0, 1)))[1]
    own = [rank for part in groups if not np.isnan(rank := correlations(*part)[1])]
    return between, float(np.mean(own)) if own else nan


def correlations(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """Pearson's and Spearman's coefficient; NaN of fewer than three clouds, or where one of the two is constant."""
    from scipy.stats import pearsonr, spearmanr

    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return nan, nan
    return float(pearsonr(a, b)[0]), float(spearmanr(a, b)[0])  # pyright: ignore[reportArgumentType]


def embed_in_plane(z: Float[np.ndarray, "n W"], clusters: int, seed: int = 0) -> Float[np.ndarray, "n 2"]:
    """t-SNE of the global tokens of clouds of so many categories.

    The perplexity is half the clouds of a category, at most 30: with as many neighbours as a category has clouds,
    t-SNE would look at the distances between categories only and draw each as one point.
    """
    from sklearn.manifold import TSNE

    perplexity = min(30.0, max(1.0, len(z) / clusters / 2))
    # Exact: the threads of the approximation add up in any order.
    return TSNE(2, perplexity=perplexity, init="pca", method="exact", random_state=seed).fit_transform(z)


def _probe(classifier: Any) -> Any:
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), classifier)
