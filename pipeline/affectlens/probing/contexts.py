"""The passages at which features are most active."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

if TYPE_CHECKING:
    from affectlens.activations.view import ActivationStore
    from affectlens.corpus.documents import Corpus
    from affectlens.probing.text_features import TokenFeatures


def top(
    tokens: TokenFeatures,
    features: Int[np.ndarray, " concepts"],
    corpus: Corpus,
    store: ActivationStore,
    layer: int,
    tokenizer: Any,
    *,
    count: int,
    around: int,
) -> list[list[dict[str, Any]]]:
    """Per feature its strongest training texts, one passage a text, strongest first.

    Args:
        tokens: activations of the features at every token from ``first_token`` on.
        features: of each concept.
        corpus: whose ``train`` documents are shown.
        store: the token ids.
        layer: at which the SAE reads.
        tokenizer: of the model.
        count: passages a feature.
        around: tokens before and after the peak.
    """
    documents = corpus.indices("train")
    values, owners = tokens.of(documents, features)
    starts = {int(document): int(at) for document, at in zip(*np.unique(owners, return_index=True), strict=True)}
    rows, first = store.tokens(layer), store.index["first_token"]
    shown = []
    for index in range(len(features)):
        activity = values[:, [index]].toarray()[:, 0]
        peaks = {}
        for row in np.flatnonzero(activity > 0):
            document, at = int(owners[row]), int(row) - starts[int(owners[row])]
            if document not in peaks or activity[row] > peaks[document][0]:
                peaks[document] = (float(activity[row]), document, at)
        best = sorted(peaks.values(), reverse=True)[:count]
        passages = []
        for value, document, at in best:
            start, end = rows.span(document)
            place = first + at
            span = range(max(0, place - around), min(end - start, place + 1 + around))
            ids = [int(rows.token[start + each]) for each in span]
            own = activity[starts[document] : starts[document] + end - start - first]
            middle = place - span.start
            passages.append(
                {
                    "before": tokenizer.decode(ids[:middle]),
                    "token": tokenizer.decode([ids[middle]]),
                    "after": tokenizer.decode(ids[middle + 1 :]),
                    "value": value,
                    "tokens": [tokenizer.decode([each]) for each in ids],
                    # Tokens before the first that is read have no activation of their own.
                    "values": [round(float(own[each - first]), 4) if each >= first else 0.0 for each in span],
                    "document": document,
                    "emotion": corpus.documents[document].emotion,
                }
            )
        shown.append(passages)
    return shown
