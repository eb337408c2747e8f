"""``affectlens explain``: features in words, and how much the words tell."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from affectlens.entry import Changes, Config, Debug, printable
from affectlens.errors import ConfigError, Unavailable, UserError
from affectlens.everyday.reading import feature_numbers, opened

if TYPE_CHECKING:
    from affectlens.experiments.grade.vote import ModelJudgeConfig
    from affectlens.explanations.explaining import Explained, Plan
    from affectlens.use.opened import Opened

GIVEN = ("feature", "text", "author")
"""Keys of a line of `--given`."""


def explain(
    config: Config,
    judge: Annotated[
        str, typer.Option(help="Who scores: embedded, a folder or a hub name; with --address, the server's model.")
    ] = "",
    address: Annotated[str, typer.Option(help="Of a server that speaks OpenAI's chat completions, up to /v1.")] = "",
    key_variable: Annotated[str, typer.Option(help="The environment variable that holds the server's key.")] = "",
    writer: Annotated[str, typer.Option(help="Who writes, if somebody else than the judge; at the same place.")] = "",
    features: Annotated[
        str, typer.Option(help="Numbers separated by commas, or best: that of each concept.", metavar="12,34|best")
    ] = "best",
    given: Annotated[
        Path | None,
        typer.Option(help="Explanations that are there already, as JSON lines with feature, text and author."),
    ] = None,
    items: Annotated[int, typer.Option(min=4, max=100, help="Active passages that are scored; as many silent.")] = 12,
    budget: Annotated[int | None, typer.Option(min=1, help="Requests to make, at most; run again to go on.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of passages.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what it would take and stop.")] = False,
    changes: Changes = None,
    debug: Debug = False,
) -> None:
    """Explain features in words with a judge of your choice, and score the words on topics that wrote none of them.

    The stages up to [bold]match[/bold] have to be finished. The judge is first asked about planted features; where it
    is not able, it scores nothing. Beside every score stand its floors. Answers are kept: the same command goes on.

    Examples: [bold]affectlens explain quickstart --judge embedded --features 642[/bold], [bold]affectlens explain
    my_study.yaml --judge gpt-4.1-mini --address https://api.openai.com/v1 --key-variable OPENAI_API_KEY
    --dry-run[/bold]
    """
    from affectlens.explanations import explaining, keeping, units
    from affectlens.explorer import contents
    from affectlens.run.manifest import Began

    if not judge:
        raise ConfigError("explain: name who scores, as in --judge embedded, or --judge MODEL --address URL")
    asked, wrote = (_judge(name, address, key_variable) for name in (judge, writer or judge))
    provided = {} if given is None else _given(given)
    study = opened(config, changes)
    began = Began.now()
    found = contents.gather(study, _say)
    chosen = feature_numbers(study, features) if given is None or features != "best" else list(provided)
    wrong = [number for number in [*chosen, *provided] if number >= found.codes.shape[1]]
    if wrong:
        raise UserError(f"feature {wrong[0]}: the SAE has features 0 to {found.codes.shape[1] - 1}")
    _say("passages")
    count = found.words.tokens.shape[1] // 2
    raised = [
        [word for token in found.words.tokens[number][:count] if (word := study.tokenizer.decode([int(token)]).strip())]
        for number in chosen
    ]
    made = explaining.plan(
        found.texts, chosen, units.features(found, chosen), units.twins(found, chosen), raised,
        items=items, seed=seed, given={number: provided[number] for number in chosen if number in provided},
    )  # fmt: skip
    _say(str(made.cost(lambda text: len(study.tokenizer.encode(text, add_special_tokens=False)))))
    if dry_run:
        return
    settings = {
        "judge": {"name": judge, "identity": _identity(asked)},
        "writer": {"name": writer or judge, "identity": _identity(wrote)},
        "features": chosen, "items": items, "seed": seed, "given": {str(n): list(made.given[n]) for n in made.given},
    }  # fmt: skip
    ran = _run(made, study, asked, wrote, budget, settings)
    folder = keeping.write(study, settings, ran, began)
    for subject in made.subjects:
        words = ran.texts.get(subject.feature) or "(no explanation)"
        own = ran.scores.get((subject.feature, "detection", explaining.OWN))
        area = "" if own is None else f" {own.auroc:.2f}"
        print(f"{subject.feature}{area} {printable(words)} [{explaining.verdict(ran, subject)}]")
    print(folder)


def _run(
    made: Plan, study: Opened, judge: ModelJudgeConfig, writer: ModelJudgeConfig, budget: int | None, settings: Any
) -> Explained:
    """Ask, while nobody else does.

    Raises:
        UserError: another run is asking, or judge or writer cannot be reached.
    """
    from filelock import FileLock, Timeout

    from affectlens.experiments.grade.judge import open_judge
    from affectlens.explanations import explaining, keeping
    from affectlens.explanations.asking import Asker

    home = keeping.home(study)
    home.mkdir(exist_ok=True)

    def asker(config: ModelJudgeConfig, role: str) -> Asker:
        opened = open_judge(config, home.parent / "models", study.device)
        return Asker(opened, settings[role]["identity"], home / keeping.ANSWERS, budget)

    try:
        with FileLock(home / f"{keeping.ANSWERS}.lock", timeout=0):
            ask = asker(judge, "judge")
            write = ask if settings["judge"] == settings["writer"] else asker(writer, "writer")
            ran = explaining.explain(made, ask, write, settings["writer"]["name"], _say)
    except Timeout:
        raise Unavailable("another run is asking with this cache; wait until it has ended") from None
    both = {id(each): each for each in (ask, write)}.values()
    _say(f"{sum(e.requests for e in both):,} requests made, {sum(e.kept for e in both):,} answers were there")
    return ran


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def _judge(name: str, address: str, key_variable: str) -> ModelJudgeConfig:
    """A judge that can be asked: its key is there, or its folder.

    Raises:
        ConfigError: it cannot.
    """
    from affectlens.config import validate
    from affectlens.experiments.grade.vote import ModelJudgeConfig
    from affectlens.model.config import shape

    values = {"name": name, "model": name, "address": address, "key_variable": key_variable}
    made = validate(ModelJudgeConfig, values, "--judge")
    if made.address:
        _ = made.key
    else:
        shape(made.local)
    return made


def _identity(judge: ModelJudgeConfig) -> str:
    """Which model it is: a local one by its bytes, a server's by its name."""
    from affectlens.model.config import identity

    return f"server: {judge.model}" if judge.address else identity(judge.local)


def _given(path: Path) -> dict[int, tuple[str, str]]:
    """Explanations from a file, by feature: text and author.

    Raises:
        ConfigError: a line is none.
    """
    from affectlens.corpus.texts import read_lines

    found = {}
    for where, row in read_lines(path):
        feature, text, author = (row.get(name) if isinstance(row, dict) else None for name in GIVEN)
        if type(feature) is not int or feature < 0 or not all(isinstance(e, str) and e.strip() for e in (text, author)):
            example = json.dumps({"feature": 642, "text": "somebody waits for news", "author": "your name"})
            raise ConfigError(f"{where}: each line must be like {example}")
        found[feature] = (str(text), str(author))
    return found
