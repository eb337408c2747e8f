"""Vectors that mean nothing in particular: what an effect has to be larger than."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int


def unit_rows(vectors: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Rows at norm 1; a row of zeros stays so."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1)


def isotropic(count: int, width: int, generator: np.random.Generator) -> Float[np.ndarray, "count width"]:
    """Unit vectors that point anywhere alike."""
    return unit_rows(generator.standard_normal((count, width)))


def covariance_matched(
    count: int, rows: Float[np.ndarray, "tokens d"], generator: np.random.Generator
) -> Float[np.ndarray, "count d"]:
    """Unit vectors that point where the data vary: random combinations of centred rows.

    Such a combination is a normal draw with the covariance of the rows, whose matrix is never needed.
    """
    centred = rows - rows.mean(axis=0)
    return unit_rows(generator.standard_normal((count, len(rows))) @ centred / np.sqrt(len(rows)))


def permuted(
    count: int, vectors: Float[np.ndarray, "n d"], generator: np.random.Generator
) -> Float[np.ndarray, "count d"]:
    """Copies of the vectors in turn, each with its coordinates in an order of its own: same values, no meaning."""
    copies = [generator.permutation(vectors[index % len(vectors)]) for index in range(count)]
    return unit_rows(np.stack(copies))


def frequency_matched(
    features: Int[np.ndarray, "n"],
    frequency: Float[np.ndarray, "d_sae"],
    count: int,
    generator: np.random.Generator,
) -> Int[np.ndarray, "count"]:
    """Other features that fire about as often as the given ones, which are matched in turn.

    Each is drawn from the 5% of live features (20 at least) that are nearest in log frequency.
    """
    live = np.setdiff1d(np.flatnonzero(frequency > 0), features)
    if not len(live):
        live = np.setdiff1d(np.arange(len(frequency)), features)
    scale = np.log(np.maximum(frequency, 1e-9))
    near = max(20, len(live) // 20)
    drawn: list[int] = []
    for index in range(count):
        target = scale[features[index % len(features)]]
        order = live[np.argsort(np.abs(scale[live] - target), kind="stable")[:near]]
        fresh = np.setdiff1d(order, drawn)
        drawn.append(int(generator.choice(fresh if len(fresh) else order)))
    return np.array(drawn, dtype=np.int64)


def same_geometry(vectors: Float[np.ndarray, "k d"], along: Float[np.ndarray, "k d"]) -> Float[np.ndarray, "k d"]:
    """The vectors turned to where other vectors point, lengths and angles kept.

    Any combination of the result is as long as the same combination of ``vectors``: what a set of features takes
    away, position by position, is taken along directions that have nothing to do with it.
    """
    _, mixture = np.linalg.qr(vectors.T.astype(np.float64))
    turned, signs = np.linalg.qr(along.T.astype(np.float64))
    # QR leaves signs open; a control points where `along` does, not opposite to it.
    turned = turned * np.where(np.diag(signs) < 0, -1.0, 1.0)
    mixture = mixture * np.where(np.diag(mixture) < 0, -1.0, 1.0)[:, None]
    return (turned @ mixture).T


def in_turn(families: Sequence[Float[np.ndarray, "n d"]], count: int) -> Float[np.ndarray, "count d"]:
    """So many vectors taken from the families in turn, so that any number of them is a fair mixture."""
    longest = max(map(len, families))
    order = [family[turn] for turn in range(longest) for family in families if turn < len(family)]
    return np.stack([order[index % len(order)] for index in range(count)])
