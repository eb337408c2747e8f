"""Interventions do what their names say, to every row its own, and leave nothing behind."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from affectlens.errors import UserError
from affectlens.model.reading import Site
from affectlens.model.sampling import sample
from affectlens.model.steering import (
    Edit,
    Span,
    add,
    drawn_codes,
    editing,
    find_span,
    move_to,
    project_out,
    scale_features,
    set_features,
)
from affectlens.model.subject import ModelConfig, Subject
from affectlens.sae import building
from affectlens.sae.recipe import Recipe

FAMILIES = ("llama", "gpt2", "qwen2")
ARCHITECTURES = {
    "standard": {},
    "gated": {},
    "jumprelu": {},
    "topk": {"k": 8},
}
SAVED = ("batchtopk", "matryoshka")
"""Architectures that sae-lens knows in training only: saved, they become JumpReLU."""
D, WIDTH, LAYER = 32, 48, 2
PROMPTS = ("The cat sat on the mat and", "We walked home through the rain")


@pytest.fixture(autouse=True)
def _one_thread():
    """Matrices this small are slower on two threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def subject(model_folder):
    """``subject(family)`` -> the loaded tiny model."""
    loaded: dict[str, Subject] = {}

    def get(family: str) -> Subject:
        if family not in loaded:
            config = ModelConfig(name=str(model_folder(family)), layer=LAYER, dtype="float32")
            loaded[family] = Subject.load(config, device="cpu", models=Path("unused"))
        return loaded[family]

    return get


def saved(architecture: str, folder: Path):
    """A random SAE as a study would train, save and open it."""
    from sae_lens import SAE

    recipe = Recipe(architecture=architecture, k=8)
    training = building.build(recipe, d_in=D, width=WIDTH, centre=torch.zeros(D), seed=1, metadata={})
    training.get_buffer("topk_threshold").fill_(0.005)
    building.save_folded(training, 1.5, folder)
    return SAE.load_from_disk(folder)


@pytest.fixture(scope="module")
def sae(tmp_path_factory: pytest.TempPathFactory):
    """``sae(architecture)`` -> a random sae-lens SAE some of whose features fire on the tiny models."""
    from sae_lens import SAE

    def build(architecture: str):
        if architecture in SAVED:
            return saved(architecture, tmp_path_factory.mktemp(architecture)).eval().requires_grad_(False)
        torch.manual_seed(1)
        settings = {"architecture": architecture, "d_in": D, "d_sae": WIDTH, "dtype": "float32", "device": "cpu"}
        module = SAE.from_dict(settings | ARCHITECTURES[architecture])
        for name, values in module.named_parameters():
            scale = 0.01 if name.startswith(("b_", "threshold", "r_")) else 1.0
            values.data = scale * torch.randn_like(values)
        if architecture == "jumprelu":
            threshold = module.get_parameter("threshold")
            threshold.data = threshold.data.abs()
        return module.eval().requires_grad_(False)

    return build


def residual(rows: int = 3, positions: int = 5) -> torch.Tensor:
    return torch.randn(rows, positions, D, generator=torch.Generator().manual_seed(0))


def units(rows: int, seed: int = 2) -> torch.Tensor:
    vectors = torch.randn(rows, D, generator=torch.Generator().manual_seed(seed))
    return vectors / vectors.norm(dim=1, keepdim=True)


def every_kind(module, rows: int, strength: torch.Tensor) -> dict[str, partial]:
    """One delta of each kind for so many rows."""
    features = torch.arange(2 * rows).reshape(rows, 2)
    decoder = module.W_dec[features]
    centre = torch.full((D,), 0.1)
    target = torch.full((rows,), 0.7)
    on = {"encode": module.encode, "features": features, "decoder": decoder, "strength": strength}
    return {
        "add": partial(add, direction=units(rows), strength=strength, unit=3.0),
        "project out": partial(project_out, direction=units(rows), centre=centre, strength=strength),
        "project out, along another": partial(
            project_out, direction=units(rows), centre=centre, strength=strength, along=units(rows, 3)
        ),
        "move": partial(move_to, direction=units(rows), centre=centre, target=target, strength=strength),
        "ablate features": partial(set_features, values=torch.zeros(rows, 2), **on),
        "clamp features": partial(set_features, values=torch.full((rows, 2), 0.5), **on),
        "scale features": partial(scale_features, factor=torch.full((rows,), 4.0), **on),
    }


def logits(subject: Subject, tokens: torch.Tensor, edits=(), *, cached: bool = False) -> torch.Tensor:
    with torch.no_grad(), editing(subject.bridge, edits, cached=cached):
        return subject.bridge(tokens)


def count_hooks(subject: Subject) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in subject.bridge.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_strength_zero_changes_no_bit(subject, sae, family: str) -> None:
    model = subject(family)
    tokens = model.pad([model.encode(text) for text in PROMPTS[:1] * 3])
    plain = logits(model, tokens)
    for name, delta in every_kind(sae("topk"), 3, torch.zeros(3)).items():
        assert torch.equal(logits(model, tokens, [Edit(LAYER, delta)]), plain), name
    for name, delta in every_kind(sae("topk"), 3, torch.ones(3)).items():
        assert not torch.equal(logits(model, tokens, [Edit(LAYER, delta)]), plain), name


def test_a_push_has_its_strength_in_units_of_the_norm() -> None:
    strengths = torch.tensor([0.1, 0.5, -2.0])
    pushed = add(residual(), units(3), strengths, unit=168.0)
    torch.testing.assert_close(pushed.norm(dim=-1), (168 * strengths.abs())[:, None].expand(3, 5))


def test_what_is_projected_out_is_gone_and_nothing_else() -> None:
    x, direction, centre = residual(), units(3), torch.full((D,), 0.3)
    after = x + project_out(x, direction, centre, torch.ones(3))
    along = ((after - centre) * direction[:, None]).sum(-1)
    torch.testing.assert_close(along, torch.zeros_like(along), atol=1e-5, rtol=0)
    rest = after - x
    torch.testing.assert_close(rest, (rest * direction[:, None]).sum(-1, keepdim=True) * direction[:, None])
    half = project_out(x, direction, centre, torch.full((3,), 0.5))
    torch.testing.assert_close(half, rest / 2)


def test_a_control_takes_as_much_at_every_position_along_its_own_direction() -> None:
    x, direction, other, centre = residual(), units(3), units(3, 9), torch.zeros(D)
    true = project_out(x, direction, centre, torch.ones(3))
    control = project_out(x, direction, centre, torch.ones(3), along=other)
    torch.testing.assert_close(control.norm(dim=-1), true.norm(dim=-1))
    torch.testing.assert_close(control, (control * other[:, None]).sum(-1, keepdim=True) * other[:, None])


def test_moving_reaches_the_target() -> None:
    x, direction, centre, target = residual(), units(3), torch.full((D,), -0.2), torch.tensor([0.0, 1.5, -3.0])
    after = x + move_to(x, direction, centre, target, torch.ones(3))
    reached = ((after - centre) * direction[:, None]).sum(-1)
    torch.testing.assert_close(reached, target[:, None].expand(3, 5), atol=1e-5, rtol=0)


def spliced(model: Subject, tokens: torch.Tensor, module, change) -> torch.Tensor:
    """sae-lens's own way: the SAE in the stream with its error term, codes changed by a hook inside it."""
    module.use_error_term = True
    handle = module.hook_sae_acts_post.register_forward_hook(lambda *parts: change(parts[-1].clone()))
    site = model.bridge.blocks[LAYER].hook_out.register_forward_hook(lambda *parts: module(parts[-1]))
    try:
        with torch.no_grad():
            return model.bridge(tokens)
    finally:
        handle.remove()
        site.remove()
        module.use_error_term = False


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *SAVED])
def test_deltas_equal_the_splice_with_error_term(subject, sae, family: str, architecture: str) -> None:
    model, module = subject(family), sae(architecture)
    tokens = model.pad([model.encode(PROMPTS[0])] * 2)
    with torch.no_grad():
        codes = module.encode(model.activations(tokens, [Site(LAYER)])[Site(LAYER)])
    firing = (codes > 0).any(dim=(0, 1)).nonzero()[:, 0][:3]
    assert len(firing) == 3, "the test needs features that fire"
    features = firing.expand(2, -1)
    on = {"encode": module.encode, "features": features, "decoder": module.W_dec[features], "strength": torch.ones(2)}
    values = torch.tensor([0.0, 0.4, 2.0]).expand(2, -1)

    def to_values(codes: torch.Tensor) -> torch.Tensor:
        codes[..., firing] = values[0]
        return codes

    def doubled(codes: torch.Tensor) -> torch.Tensor:
        codes[..., firing] *= 2
        return codes

    # Before the first text token the tiny models and real ones differ most, so no position is left out.
    edits = [Edit(LAYER, partial(set_features, values=values, **on))]
    torch.testing.assert_close(
        logits(model, tokens, edits), spliced(model, tokens, module, to_values), atol=1e-5, rtol=0
    )
    edits = [Edit(LAYER, partial(scale_features, factor=torch.full((2,), 2.0), **on))]
    torch.testing.assert_close(logits(model, tokens, edits), spliced(model, tokens, module, doubled), atol=1e-5, rtol=0)
    assert not torch.allclose(spliced(model, tokens, module, to_values), logits(model, tokens), atol=1e-4)


def test_resampled_codes_come_from_one_token_at_a_time() -> None:
    codes = np.arange(12.0).reshape(4, 3)
    drawn = drawn_codes(codes, 50, np.random.default_rng(0))
    assert {tuple(row) for row in drawn} == {tuple(row) for row in codes}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_gives_what_its_rows_give_one_by_one(subject, sae, family: str) -> None:
    """Different kinds, vectors, strengths and spans side by side, at two layers."""
    model, module = subject(family), sae("topk")
    tokens = model.pad([model.encode(PROMPTS[0])])
    strengths = torch.tensor([0.5, -1.0, 0.3, 1.0])
    kinds = every_kind(module, 4, strengths)
    chosen = [kinds["add"], kinds["project out"], kinds["scale features"], kinds["move"]]

    def rows_of(delta: partial, rows: list[int]) -> partial:
        """The delta for some of its rows."""
        cut = {
            key: value[rows] if isinstance(value, torch.Tensor) and len(value) == 4 else value
            for key, value in delta.keywords.items()
        }
        return partial(delta.func, **cut)

    spans = Span(torch.tensor([1, 2, 1, 3]), torch.tensor([4, 5, 99, 6]))

    def edits(rows: list[int], places: list[int]) -> list[Edit]:
        return [
            Edit(
                layer,
                rows_of(chosen[row], [row]),
                torch.tensor([place]),
                Span(spans.start[[row]], spans.end[[row]]),
            )
            for layer in (1, LAYER)
            for row, place in zip(rows, places, strict=True)
        ]

    together = logits(model, tokens.expand(4, -1), edits([0, 1, 2, 3], [0, 1, 2, 3]))
    for row in range(4):
        alone = logits(model, tokens, edits([row], [0]))
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-6, rtol=1e-5)
    plain = logits(model, tokens)
    assert all(not torch.allclose(together[row], plain[0], atol=1e-4) for row in range(4))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_key_value_cache_changes_nothing(subject, family: str) -> None:
    """A grid of strengths sampled as one batch: same text as row by row, and as reading everything at every step."""
    model, steps = subject(family), 4
    prompt = model.encode(PROMPTS[1])
    strengths = torch.tensor([0.0, 0.5, 2.0])
    chances = np.random.default_rng(3).random((3, steps))
    directions = units(3)
    for make in (
        lambda rows: Span.text(rows, model.lead),
        lambda rows: Span.answer([len(prompt)] * rows, model.lead),
        lambda rows: Span.prompt([len(prompt)] * rows, model.lead),
        lambda rows: Span.onward(rows, len(prompt) + 2),
    ):

        def grid(rows: slice, make=make) -> list[Edit]:
            delta = partial(add, direction=directions[rows], strength=strengths[rows], unit=1.0)
            return [Edit(LAYER, delta, span=make(len(strengths[rows])))]

        whole = say(model, prompt, chances, grid(slice(0, 3)))
        assert whole == say(model, prompt, chances, grid(slice(0, 3)), cached=False)
        alone = [say(model, prompt, chances[i : i + 1], grid(slice(i, i + 1)))[0] for i in range(3)]
        assert whole == alone
    same = say(model, prompt, np.tile(chances[:1], (3, 1)), grid(slice(0, 3)))
    assert same[0] != same[2], "a strong push must change the text"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_grid_of_all_kinds_is_sampled_as_row_by_row_under_the_cache(subject, sae, family: str) -> None:
    """Every kind of intervention at three strengths as one batch, strength 0 among them, against each row alone."""
    model, strengths = subject(family), torch.tensor([0.0, 0.6, 1.5])
    prompt, chances = model.encode(PROMPTS[0]), np.random.default_rng(5).random(4)
    kinds = list(every_kind(sae("topk"), 3, strengths).values())
    rows = [(kind, row) for kind in kinds for row in range(3)]

    def one(kind: partial, row: int, place: int) -> Edit:
        cut = {
            key: value[[row]] if isinstance(value, torch.Tensor) and len(value) == 3 else value
            for key, value in kind.keywords.items()
        }
        return Edit(LAYER, partial(kind.func, **cut), torch.tensor([place]), Span.text(1, model.lead))

    edits = [one(kind, row, place) for place, (kind, row) in enumerate(rows)]
    whole = say(model, prompt, np.tile(chances, (len(rows), 1)), edits)
    alone = [say(model, prompt, chances[None], [one(kind, row, 0)])[0] for kind, row in rows]
    assert whole == alone
    plain = say(model, prompt, chances[None])[0]
    assert all(text == plain for text, (_, row) in zip(whole, rows, strict=True) if row == 0)
    assert any(text != plain for text in whole), "some intervention must change the text"


def say(model: Subject, prompt: list[int], chances: np.ndarray, edits=(), **options) -> list[list[int]]:
    """One text a row of chances."""
    rows = sample(model, [model.led(prompt)], chances[:, None], edits, special="never", **options)
    return [row[0].tokens for row in rows]


def places(rows: int, first: int, count: int) -> torch.Tensor:
    return torch.arange(first, first + count).expand(rows, -1)


def test_spans_cover_what_they_name(subject) -> None:
    model = subject("llama")
    prompt, text = [3, 2], Span.text(2, 1)
    assert text.mask(places(2, 0, 3)).tolist() == [[False, True, True]] * 2
    assert Span.prompt(prompt, 1).mask(places(2, 0, 5)).tolist() == [
        [False, True, True, True, False],
        [False, True, True, False, False],
    ]
    assert Span.answer(prompt, 1).mask(places(2, 3, 2)).tolist() == [[False, True], [True, True]]
    sentence = "The old dog slept near the warm stove"
    start, end = find_span(model.tokenizer, sentence, "dog slept")
    assert "dog slept" in model.tokenizer.decode(model.encode(sentence)[start:end])
    assert Span.named([(start, end)], 1).mask(places(1, 0, 40)).sum() == end - start
    with pytest.raises(UserError, match="cat"):
        find_span(model.tokenizer, sentence, "cat")


def test_outside_its_span_an_edit_changes_nothing(subject) -> None:
    model = subject("llama")
    tokens = model.pad([model.encode(PROMPTS[0])])
    delta = partial(add, direction=units(1), strength=torch.ones(1), unit=5.0)
    last = tokens.shape[1] - 1
    changed, plain = logits(model, tokens, [Edit(LAYER, delta, span=Span.onward(1, last))]), logits(model, tokens)
    assert torch.equal(changed[:, :last], plain[:, :last])
    assert not torch.allclose(changed[:, last], plain[:, last])


def test_hooks_are_gone_after_exceptions(subject) -> None:
    model = subject("llama")
    tokens = model.pad([model.encode(PROMPTS[0])])
    plain, hooks = logits(model, tokens), count_hooks(model)
    delta = partial(add, direction=units(1), strength=torch.ones(1), unit=5.0)

    def fails(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("inside a forward pass")

    for edits in ([Edit(LAYER, fails)], [Edit(1, delta), Edit(LAYER, fails)]):
        with pytest.raises(RuntimeError, match="inside a forward pass"):
            logits(model, tokens, edits)
        assert count_hooks(model) == hooks
        assert torch.equal(logits(model, tokens), plain)
    with pytest.raises(KeyError), editing(model.bridge, [Edit(1, delta)]):
        raise KeyError
    with pytest.raises(UserError, match="layers 0 to 3"), editing(model.bridge, [Edit(1, delta), Edit(4, delta)]):
        pass
    assert count_hooks(model) == hooks
    assert torch.equal(logits(model, tokens), plain)


def test_other_hooks_stay(subject) -> None:
    """A hook somebody else set is not removed with ours."""
    model, seen = subject("llama"), []
    handle = model.bridge.blocks[1].hook_out.register_forward_hook(lambda *parts: seen.append(1))
    tokens = model.pad([model.encode(PROMPTS[0])])
    logits(model, tokens, [Edit(1, partial(add, direction=units(1), strength=torch.ones(1), unit=5.0))])
    logits(model, tokens)
    handle.remove()
    assert len(seen) == 2
