"""Interventions on the loaded model: vectors injected and taken out, text sampled meanwhile, all of it scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from affectlens.interventions.conditions import Condition, Family, grid
from affectlens.interventions.frames import read_frames, read_lexicon, story_end
from affectlens.interventions.inputs import InterventionInputs
from affectlens.interventions.sampled import Reader
from affectlens.interventions.scoring import (
    Context,
    EditsOf,
    Positions,
    Readout,
    Scorer,
    direction_removal,
    feature_removal,
    injection,
    perplexity_ratios,
)
from affectlens.model.partial import PartialForward
from affectlens.model.sampling import Banned, sample
from affectlens.model.steering import drawn_codes
from affectlens.model.subject import Subject, load_tokenizer
from affectlens.model.words import ConceptWords, choose_words
from affectlens.probing import control_vectors as controls
from affectlens.probing.methods import Vocabulary, difference_of_means
from affectlens.sae.model import token_scale

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float, Int

    from affectlens.corpus.documents import Document
    from affectlens.interventions.config import CausalConfig
    from affectlens.stage import Setting


@dataclass(eq=False)
class InterventionRunner:
    """The interventions of one study, on one loaded model.

    Attributes:
        config: of the causal stage.
        setting: device and model.
        inputs: the vectors.
        layers: where is injected and projected out, ascending.
    """

    config: CausalConfig
    setting: Setting
    inputs: InterventionInputs
    layers: Sequence[int]

    @cached_property
    def scorer(self) -> Scorer:
        subject = Subject.load(self.setting.model, device=self.setting.device, models=self.setting.models)
        words = self._words(subject.tokenizer)
        return Scorer(PartialForward(subject, min(self.layers)), words, self.config.tokens_per_batch, self._readout())

    def _readout(self) -> Readout | None:
        layer, directions = self.config.readout_layer, self.inputs.directions
        if layer is None:
            return None
        norm = directions.strength_unit(self.inputs.activations, layer)
        return Readout(layer, self._tensor(directions.centre(layer)), self._tensor(directions.unit(layer)), norm)

    def _tensor(self, values: Any) -> torch.Tensor:
        import torch

        return torch.as_tensor(values, dtype=torch.float32, device=self.setting.device)

    @cached_property
    def contexts(self) -> list[Context]:
        """The sentences to be completed, described persons first."""
        return [self.scorer.context(frame) for frame in self.frames()]

    def frames(self) -> list[str]:
        """The sentences of :attr:`contexts`."""
        frames = read_frames()
        return [frame for kind in ("person", "speaker") for frame in frames[kind][: self.config.frames]]

    def inject(self, start: int, end: int) -> dict[str, np.ndarray]:
        """Effects of a slice of vectors at every strength, in every frame; perplexity for the studied vectors."""
        strengths = self.config.strengths
        conditions = grid(self.inputs.names[start:end], strengths)
        shape, frames = (end - start, len(strengths)), len(self.contexts)
        push = self._push(conditions, self.config.positions)
        scored = [self.scorer.score(context, len(conditions), push) for context in self.contexts]
        studied = max(0, min(end, len(self.inputs.studied) * len(self.inputs.concepts)) - start)
        arrays = {
            "effect": np.stack([each.effect for each in scored], axis=1).reshape(*shape, frames, -1),
            "divergence": np.stack([each.divergence for each in scored], axis=1).reshape(*shape, frames),
            "perplexity": self._perplexity(conditions[: studied * len(strengths)]).reshape(studied, len(strengths)),
        }
        readings = [each.reading for each in scored if each.reading is not None]
        if readings:
            arrays["reading"] = np.stack(readings, axis=1).reshape(*shape, frames, -1)
        return arrays

    def _push(self, conditions: Sequence[Condition], positions: Positions) -> EditsOf:
        """Each condition's vector at its strength, a row a condition."""
        rows, doses = self.inputs.vectors_of(conditions), [each.strength for each in conditions]
        lead = self.scorer.upper.subject.lead
        return injection(self._tensor(rows), self._tensor(doses), self._units, lead, positions)

    def _perplexity(self, conditions: Sequence[Condition]) -> Float[np.ndarray, "conditions"]:
        """Perplexity on neutral text under each injection of the whole text, as a multiple of what it is without."""
        if not conditions:
            return np.zeros(0, np.float32)
        return perplexity_ratios(self.scorer, self._push(conditions, "all"), len(conditions), self.config.neutral_texts)

    def ablate(self, index: int) -> dict[str, np.ndarray]:
        """Ablation of one concept's vectors in its held-out contexts, each with its controls."""
        measured: dict[str, list[Any]] = {}
        stories = self.stories(index)
        for number, document in enumerate(stories):
            text, frame = self.context_text(document, number)
            context = self.scorer.context(text)
            measured.setdefault("frames", []).append(frame)
            measured.setdefault("base", []).append(self.scorer.contrast(context.log_probabilities[None])[0])
            for family in self.inputs.studied:
                edits = self._removal(family, index, document)
                fires = 1.0 if family == "direction" else self._fires(context, self.inputs.feature_sets[family][index])
                measured.setdefault(f"fires.{family}", []).append(fires)
                rows = 1 + self.config.ablation_controls
                if fires or self.config.feature_ablation != "zero":
                    measured.setdefault(family, []).append(-self.scorer.score(context, rows, edits).effect)
                else:
                    # Features that do not fire are 0 already: nothing is taken, and nothing changes.
                    measured.setdefault(family, []).append(np.zeros((rows, len(self.inputs.concepts))))
        topics = sorted({document.topic for document in self.inputs.corpus.documents})
        integers = {"topics": [topics.index(each.topic) for each in stories], "frames": measured.pop("frames", [])}
        arrays = {key: np.array(values, dtype=np.float32) for key, values in measured.items()}
        arrays |= {key: np.array(values, dtype=np.int64) for key, values in integers.items()}
        return {f"{index:04d}.{key}": values for key, values in arrays.items()}

    def stories(self, index: int) -> list[Document]:
        """Held-out stories of one concept, topic by topic in turn."""
        corpus = self.inputs.corpus
        ranked, seen = [], dict[str, int]()
        for document in (corpus.documents[each] for each in corpus.indices("test")):
            if document.emotion == self.inputs.concepts[index]:
                ranked.append((seen.setdefault(document.topic, 0), document.index, document))
                seen[document.topic] += 1
        return [document for _, _, document in sorted(ranked, key=lambda each: each[:2])][: self.config.stories]

    def context_text(self, document: Document, number: int) -> tuple[str, int]:
        """A story's end and the beginning of a sentence about its feeling, told as the story is; and which one."""
        frames = read_frames()
        ending = story_end(document.text, self.scorer.upper.subject.encode, self.config.story_tokens)
        every = [*frames["after_first"], *frames["after_third"]]
        fitting = frames["after_first" if document.narrator == "first" else "after_third"]
        chosen = fitting[number % len(fitting)]
        return f"{ending} {chosen}", every.index(chosen)

    def _fires(self, context: Context, features: Int[np.ndarray, "k"]) -> float:
        """Share of the text's positions at which one of the features fires."""
        upper, lead = self.scorer.upper, self.scorer.upper.subject.lead
        residual = context.residual
        if upper.layer != self.inputs.layer:
            residual = PartialForward(upper.subject, self.inputs.layer).lower(context.tokens)
        codes = self._encode(residual[0, lead:].float())[:, self._tensor(features).long()]
        return float((codes > 0).any(dim=-1).float().mean())

    @cached_property
    def _encode(self) -> Any:
        return self.inputs.sae.load().to(self.setting.device).encode

    def _removal(self, family: Family, index: int, document: Document) -> EditsOf:
        """The ablation in the first row, then its controls."""
        count, lead = self.config.ablation_controls, self.scorer.upper.subject.lead
        if family == "direction":
            own, directions = self.inputs.vectors[index], self.inputs.directions
            along = self._tensor(np.concatenate([own[None], self.inputs.mixed_controls(count)]))
            centres = {layer: self._tensor(directions.centre(layer)) for layer in self.layers}
            return direction_removal(self._tensor(own), along, centres, lead, self.config.positions)
        features = self.inputs.feature_sets[family][index]
        decoder = self.inputs.sae.decoder[features]
        random = self.inputs.mixed_controls(count * len(features)).reshape(count, len(features), -1)
        decoders = np.stack([decoder, *(controls.same_geometry(decoder, each) for each in random)])
        return feature_removal(
            self.inputs.layer,
            self._encode,
            self._tensor(features).long(),
            self._tensor(decoders),
            self._tensor(self._new_codes(features, document)),
            lead,
            self.config.positions,
            partial(token_scale, self.inputs.sae.load()),
        )

    def _new_codes(self, features: Int[np.ndarray, "k"], document: Document) -> Float[np.ndarray, "k"]:
        """What the activations of ablated features become."""
        if self.config.feature_ablation == "zero":
            return np.zeros(len(features))
        codes = self.inputs.token_activations[:, features]
        if self.config.feature_ablation == "mean":
            return codes.mean(axis=0)
        return drawn_codes(codes, 1, self.inputs.generator(f"resample {document.index}"))[0]

    def sample(self, start: int, end: int, texts: list[dict[str, Any]], *, banned: bool) -> dict[str, np.ndarray]:
        """How text reads that is sampled under a slice of vectors; the first slice brings text without intervention.

        Args:
            texts: gets what was written, with the vector and the opening.
            banned: whether no word of a studied concept may be said.
        """
        conditions = grid(self.inputs.names[start:end], [self.config.reference])
        if start == 0:
            conditions = (Condition(), *conditions)
        vectors, labels = self.inputs.vectors_of(conditions), [self._label(each) for each in conditions]
        scores: dict[str, list[np.ndarray]] = {}
        for opening in read_frames()["openings"]:
            written, read = self._write(opening, vectors, banned)
            for label, text in zip(np.repeat(labels, self.config.samples).tolist(), written, strict=True):
                texts.append({"vector": label, "words_banned": banned, "opening": opening, "text": text})
            for key, values in read.items():
                each = values.reshape(len(vectors), self.config.samples, *values.shape[1:])
                scores.setdefault(key, []).append(each.mean(axis=1))
        return {key: np.stack(values, axis=1).astype(np.float32) for key, values in scores.items()}

    def _label(self, condition: Condition) -> str:
        """What a vector is called beside its texts: controls by their family alone."""
        studied = condition.family in self.inputs.studied
        return f"{condition.family} {condition.vector}" if studied else condition.family

    def _write(
        self, opening: str, vectors: Float[np.ndarray, "vectors d_model"], banned: bool
    ) -> tuple[list[str], dict[str, np.ndarray]]:
        """So many samples of every vector: the texts, and how they read. All vectors get the same chances."""
        config, subject = self.config, self.scorer.upper.subject
        prompt = subject.encode(opening)
        width = len(prompt) + subject.lead
        rows = self._tensor(np.repeat(vectors, config.samples, axis=0))
        push = injection(
            rows, rows.new_full((len(rows),), config.reference), self._units, subject.lead, config.positions
        )
        chances = self.inputs.generator(f"sample {opening}").random((config.samples, config.sample_tokens))
        together = max(1, config.tokens_per_batch // (width + config.sample_tokens) // config.samples)
        written: list[str] = []
        read: list[dict[str, np.ndarray]] = []
        for first in range(0, len(vectors), together):
            count = min(together, len(vectors) - first)
            run = slice(first * config.samples, (first + count) * config.samples)
            completions = sample(
                subject,
                [subject.led(prompt)],
                np.tile(chances, (count, 1))[:, None],
                push(run, width),
                resume_at=min(self._units),
                temperature=config.temperature,
                special="never",
                banned=self._banned if banned else None,
            )
            texts = [row[0].tokens for row in completions]
            read.append(self.reader.read(prompt, texts))
            written += [subject.tokenizer.decode(text) for text in texts]
        return written, {key: np.concatenate([each[key] for each in read]) for key in read[0]}

    def scored_by(self) -> dict[str, Any]:
        """What the effects are of and were scored by: every vector, the sentences, the words of each concept."""
        words = {
            each.concept: {"words": list(each.words), "whole_words": each.whole, "shared_words": each.shared}
            for each in self._words(load_tokenizer(self.setting.model, self.setting.models))
        }
        vectors = [{"vector": vector, "family": family} for vector, family in self.inputs.names]
        return {"vectors": vectors, "frames": self.frames(), "words": words}

    def _words(self, tokenizer: Any) -> list[ConceptWords]:
        return choose_words(tokenizer, self.inputs.concepts, read_lexicon(), self.config.words)

    @property
    def _units(self) -> dict[int, float]:
        """What strength 1 means at each layer."""
        inputs = self.inputs
        return {layer: inputs.directions.strength_unit(inputs.activations, layer) for layer in self.layers}

    @cached_property
    def _banned(self) -> Banned:
        lexicon = read_lexicon()
        words = [word for concept in self.inputs.concepts for word in (concept, *lexicon.get(concept, ()))]
        return Banned.words(self.scorer.upper.subject.tokenizer, words)

    @cached_property
    def reader(self) -> Reader:
        """Reads sampled text by what built nothing that is injected: other topics, and words."""
        corpus = self.inputs.corpus
        held, train = corpus.indices("validation", "test"), corpus.indices("train")
        layer, built = self.inputs.layer, self.inputs.directions
        stories = built.without_massive(layer, self.inputs.activations.pooled(layer)[held])
        probe = difference_of_means(stories, corpus.labels(held)).unit
        vocabulary = Vocabulary.fit([corpus.documents[index].text for index in train], corpus.labels(train))
        return Reader(self.scorer.upper.subject, self.inputs.layer, probe, vocabulary)
