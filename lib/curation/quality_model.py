"""p(good): how probably a document comes from a reference of good texts rather than from the crawl, by its signals.

    model = quality_model.fit(good, crawl)        model.save("quality.json")
    for document in quality_model.stage(documents, model="quality.json", threshold=0.3): ...

Each signal becomes the share of the training values below it, by a t-digest (Dunning and Ertl, arXiv 1902.04023), so
that outliers and scales don't matter; a logistic regression sees these shares and their squares. Its scores are made
probabilities by cross-fitting: each training document is scored by a model that did not see it, and a monotone function
from those scores to how often the document was good (isotonic regression) is the calibration. A probability holds for
the mixture of good and crawl that was trained on. It says how much a text resembles the reference, not what it is worth
to a model: that, proxy models must show.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from lib import files
from lib.curation import signals
from lib.curation.document import Document
from lib.curation.tally import Tally

FOLDS = 5
_MIDDLE = 0.5  # the share for a signal that a document hasn't


@dataclass(frozen=True)
class QualityModel:
    """Names of signals [n], their t-digests, weights of shares and squares [2 n], bias, corners of the calibration."""

    names: list[str]
    digests: list[dict]
    weights: list[float]
    bias: float
    scores: list[float]
    probabilities: list[float]
    language: str = "en"

    def probability(self, texts: Iterable[str]) -> np.ndarray:
        """p(good) of each text [count]."""
        found = np.array([values(text, self.language) for text in texts]).reshape(-1, len(self.names))
        scores = _features(found, self.digests) @ np.array(self.weights) + self.bias
        return np.interp(scores, self.scores, self.probabilities)

    def save(self, path: Path | str) -> None:
        """Write the model as JSON."""
        files.write_text(path, json.dumps(asdict(self)))


@dataclass(frozen=True)
class Fitted:
    """A model, and what cross-fitting says of it: the calibrated p(good) of each training document by a model that saw
    neither it nor its calibration, and which were good [count].
    """

    model: QualityModel
    held_out: np.ndarray
    good: np.ndarray

    @property
    def brier(self) -> float:
        """Mean squared error of the held-out probabilities."""
        return float(((self.held_out - self.good) ** 2).mean())

    def reliability(self, bins: int = 10) -> list[dict]:
        """For `bins` equal ranges of p: how many documents, the mean p, and how many of them were good."""
        place = np.minimum((self.held_out * bins).astype(int), bins - 1)
        some = [(place == each) for each in range(bins)]
        return [
            {"documents": int(mask.sum()), "p": self.held_out[mask].mean(), "good": self.good[mask].mean()}
            for mask in some
            if mask.any()
        ]


def load(path: Path | str) -> QualityModel:
    """The model that `save` wrote; ValueError for another file."""
    try:
        return QualityModel(**json.loads(Path(path).read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path} is no quality model ({error}); one is what QualityModel.save wrote; fit one."
        ) from None


def stage(
    documents: Iterable[Document],
    *,
    model: QualityModel | Path | str,
    tally: Tally | None = None,
    threshold: float = 0.0,
) -> Iterator[Document]:
    """The documents with `metadata["quality"]`, p(good), without those below `threshold`."""
    tally = tally or Tally("quality_model")
    model = model if isinstance(model, QualityModel) else load(model)
    for document in documents:
        p = float(model.probability([document.text])[0])
        if p < threshold:
            tally.drop(document, f"p(good) below {threshold:g}")
        else:
            yield tally.keep(document.having(quality=p))


def basis(*, model: Path | str, **_) -> str:
    """What a run of `pipeline` depends on beside its options: the model's file."""
    return files.sha256(model)


def fit(good: Iterable[str], crawl: Iterable[str], *, language: str = "en", seed: int = 0) -> Fitted:
    """A model of two collections of texts; ValueError where one has fewer texts than two for each fold."""
    from fastdigest import TDigest  # loads for fitting alone

    texts = [list(good), list(crawl)]
    if min(map(len, texts)) < 2 * FOLDS:
        raise ValueError(
            f"{len(texts[0])} good and {len(texts[1])} other texts; {2 * FOLDS} of each or more are needed; give more."
        )
    raw = np.array([values(text, language) for each in texts for text in each])
    labels = np.repeat([1.0, 0.0], [len(texts[0]), len(texts[1])])
    digests = [TDigest.from_values(column[~np.isnan(column)].tolist() or [0.0]).to_dict() for column in raw.T]
    shares = _features(raw, digests)
    held_out, corners = _cross_fitted(shares, labels, seed)
    machine = _regression().fit(shares, labels)
    model = QualityModel(names(), digests, machine.coef_[0].tolist(), float(machine.intercept_[0]), *corners, language)
    return Fitted(model, held_out, labels)


def names() -> list[str]:
    """The signals that are used: those of a document, and the means of those of its lines."""
    return list(signals.of("One line."))


def values(text: str, language: str = "en") -> list[float]:
    """The value of each of `names`; NaN for a signal that the text hasn't."""
    found = signals.of(text, language).values()
    return [np.nan if each is None or each == [] else float(np.mean(each)) for each in found]


def _features(raw: np.ndarray, digests: list[dict]) -> np.ndarray:
    """Shares of the training values below each value, and their squares [count, 2 n], centred."""
    from fastdigest import TDigest  # loads for this stage alone

    shares = np.full(raw.shape, _MIDDLE)
    for column, digest in enumerate(digests):
        there = ~np.isnan(raw[:, column])
        shares[there, column] = TDigest.from_dict(digest).cdf_vec(raw[there, column].tolist())
    return np.concatenate([shares - _MIDDLE, (shares - _MIDDLE) ** 2], axis=1)


def _regression():
    from sklearn import linear_model  # loads slowly, for fitting alone

    return linear_model.LogisticRegression(C=1.0, max_iter=2000)


def _cross_fitted(shares, labels, seed):
    """(Held-out calibrated probabilities [count], (scores, probabilities) at the corners of the calibration).

    A fold's scores come from a model of the other folds, and its calibration from the scores of the other folds.
    """
    from sklearn import isotonic, model_selection  # loads slowly, for fitting alone

    folds = list(model_selection.StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(shares, labels))
    scores, held_out = np.empty(len(labels)), np.empty(len(labels))
    for rest, fold in folds:
        scores[fold] = _regression().fit(shares[rest], labels[rest]).decision_function(shares[fold])

    def calibration(some):
        return isotonic.IsotonicRegression(out_of_bounds="clip").fit(scores[some], labels[some])

    for rest, fold in folds:
        held_out[fold] = calibration(rest).predict(scores[fold])
    whole = calibration(np.arange(len(labels)))
    return held_out, (whole.X_thresholds_.tolist(), whole.y_thresholds_.tolist())
