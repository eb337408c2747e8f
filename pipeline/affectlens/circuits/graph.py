"""A circuit as an attribution graph in the JSON that Neuronpedia's validator and viewer read.

Fields as in the draft-07 schema of Anthropic's attribution graphs: ``metadata``, ``qParams``, ``nodes``, ``links``.
Heads have a feature type of their own; the embedding and the word that is scored are the ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from affectlens.errors import UserError

HEAD_TYPE = "attention head"
METADATA = ("slug", "scan", "prompt", "prompt_tokens")
NODE = ("node_id", "feature", "layer", "ctx_idx", "feature_type", "jsNodeId", "clerp")
LINK = ("source", "target", "weight")
QPARAMS = ("pinnedIds", "supernodes", "linkType", "clickedId", "sg_pos")


def graph(
    slug: str,
    model: str,
    prompt: str,
    prompt_tokens: Sequence[str],
    members: Sequence[Mapping[str, Any]],
    edges: Sequence[Mapping[str, Any]],
    target: str,
) -> dict[str, Any]:
    """The pooled circuit as a graph over one prompt, all nodes at its last position.

    Args:
        slug: names the graph; letters, digits and ``-``.
        model: as its users name it.
        prompt: a context, for readers.
        members: rows of the table ``members``.
        edges: rows of the table ``edges``.
        target: what is scored at the end.
    """
    last = len(prompt_tokens) - 1
    depth = max((row["layer"] for row in members), default=0)

    def node(name: str, feature: int, layer: str, kind: str, words: str, effect: float | None) -> dict[str, Any]:
        found = {
            "node_id": name,
            "feature": feature,
            "layer": layer,
            "ctx_idx": last,
            "feature_type": kind,
            "jsNodeId": f"{name}-0",
            "clerp": words,
        }
        return found if effect is None else found | {"influence": effect}

    nodes = [node(f"E_0_{last}", 0, "E", "embedding", "the story", None)]
    links = []
    names = {}
    for row in members:
        layer, head = int(row["layer"]), int(row["head"])
        name = names[f"L{layer}H{head}"] = f"{layer}_{head}_{last}"
        nodes.append(node(name, head, str(layer), HEAD_TYPE, f"head {head} of layer {layer}", float(row["effect"])))
    end = f"{depth + 1}_0_{last}"
    nodes.append(node(end, 0, str(depth + 1), "logit", target, None))
    for row in edges:
        if row["source"] in names and row["target"] in names:
            ends = {"source": names[row["source"]], "target": names[row["target"]]}
            links.append(ends | {"weight": float(row["weight"])})
    for row in members:
        name = names[f"L{int(row['layer'])}H{int(row['head'])}"]
        links.append({"source": name, "target": end, "weight": float(row["effect"])})
    return {
        "metadata": {"slug": slug, "scan": model, "prompt": prompt, "prompt_tokens": list(prompt_tokens)},
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": nodes,
        "links": links,
    }


def validate(found: Mapping[str, Any]) -> None:
    """Refuse a graph that lacks a field, or whose links lead nowhere.

    Raises:
        UserError: names the field or the link.
    """
    for key, fields in (("metadata", METADATA), ("qParams", QPARAMS)):
        for field in fields:
            if field not in found.get(key, {}):
                raise UserError(f"the graph has no `{key}.{field}`; write it with `affectlens.circuits.graph.graph`")
    for key, fields in (("nodes", NODE), ("links", LINK)):
        for number, each in enumerate(found.get(key, ())):
            for field in fields:
                if field not in each:
                    raise UserError(f"the graph's {key}[{number}] has no `{field}`")
    ids = [each["node_id"] for each in found["nodes"]]
    if len(set(ids)) < len(ids):
        raise UserError("two nodes of the graph have one `node_id`")
    for link in found["links"]:
        for end in ("source", "target"):
            if link[end] not in ids:
                raise UserError(f"a link of the graph leads to `{link[end]}`, which is no node")
