"""EleutherAI's evaluation harness over a study's model: any task, plain or steered.

``lm-eval run --model affectlens --model_args study=quickstart,vectors=desperate:0.1+calm:-0.05 --tasks ...`` with
releases that find plugins. With all others ``python -m affectlens.serve.lm_eval_model run ...``, which registers the
model first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from affectlens.model.templates import written
from affectlens.serve.generation import Answer, End, Job, Prompt, Token
from affectlens.serve.protocol import Refused, Steering, strengths
from affectlens.serve.service import Limits, Service
from affectlens.use.opened import Opened, finished

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

NAME = "affectlens"
ANSWER = 256
"""Tokens of an answer where the task names no number."""


class AffectLensLM(TemplateLM):
    """A study's model, steered at every token of what it reads and writes.

    The begin token, where the model has one, stands before every text, as everywhere in a study.

    Args:
        study: a study file, or the name of a shipped one.
        vectors: strength of each vector, as a share of the mean residual norm: a mapping, or
            ``desperate:0.1+calm:-0.05``.
        cap: what is held at most at a value, likewise.
        batch_size: answers that are decoded at once, if more than 1, which the harness passes where none is given.
        max_gen_toks: tokens of an answer where the task names no number.
        overrides: ``key=value`` changes of the study, joined by ``+``.
    """

    def __init__(
        self,
        study: str,
        vectors: str | Mapping[str, float] | None = None,
        cap: str | Mapping[str, float] | None = None,
        batch_size: int | str | None = None,
        max_gen_toks: int = ANSWER,
        overrides: str = "",
        **others: Any,
    ) -> None:
        """Load.

        Raises:
            ValueError: an argument that is not offered, or a vector that the study does not have.
        """
        super().__init__()
        if unknown := set(others) - {"device", "max_batch_size"}:
            raise ValueError(f"the model `{NAME}` takes no argument `{min(unknown)}`")
        rows = max(2, int(str(batch_size))) if str(batch_size) not in ("None", "auto", "1") else Limits().rows
        opened = Opened(*finished(study, *filter(None, overrides.split("+"))))
        self.service = Service(opened, Limits(rows=rows, waiting=2 * rows))
        self.tokenizer, self.max_gen_toks, self._study = opened.tokenizer, max_gen_toks, study
        try:
            self._edits = self.service.edits(Steering(vectors=strengths(vectors), cap=strengths(cap)))
        except Refused as error:
            raise ValueError(str(error)) from None

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context."""
        return self.eot_token_id if self.tokenizer.bos_token_id is None else self.tokenizer.bos_token_id

    @property
    def max_length(self) -> int:
        """Tokens that the model takes at once."""
        return self.service.engine.decoder.context or 4096

    @property
    def tokenizer_name(self) -> str:
        """Under which the harness keeps prompts that a chat template has written."""
        return self._study.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids; marks of a chat template become the tokens that they name."""
        return self.tokenizer(string, add_special_tokens=False)["input_ids"]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A chat as the model's template writes it."""
        return written(
            self.tokenizer,
            chat_history,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        found = self._together(lambda request: self._score(*request[1:]), requests, "loglikelihood", disable_tqdm)
        for (key, _, _), score in zip(requests, found, strict=True):
            if key is not None:
                self.cache_hook.add_partial("loglikelihood", key, score)
        return found

    def _together(self, work: Callable[[Any], Any], requests: Sequence[Any], kind: str, silent: bool) -> list[Any]:
        """The work on all requests, as many at a time as are read or decoded at once."""
        with ThreadPoolExecutor(self.service.limits.rows) as pool:
            done = pool.map(work, requests)
            return list(tqdm(done, total=len(requests), disable=silent, desc=f"Running {kind} requests"))

    def _score(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
        """Log-probability of a continuation, and whether it is what the model would say."""
        ids = self._led([*context, *continuation], self.max_length)
        events = list(self.service.engine.events(Job(ids, edits=self._edits, most=0, logprobs=1, echo=True)))
        (scores,) = (event.scores for event in events if isinstance(event, Prompt))
        scores = (scores or ())[-len(continuation) :] if continuation else ()
        pairs = zip(scores, ids[-len(continuation) :], strict=True) if continuation else ()
        return sum(score[0] for score in scores), all(best[0][0] == token for (_, best), token in pairs)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of whole texts, each token once, in windows of the model's context."""
        found = []
        for request in tqdm(requests, disable=disable_tqdm, desc="Running loglikelihood_rolling requests"):
            (text,) = request.args
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(text), prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length - 1, context_len=1,
            )  # fmt: skip
            found.append(sum(self._score(*make_disjoint_window(window))[0] for window in windows))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, found[-1])
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answers, decoded together."""
        found = self._together(lambda request: self._generate(*request.args), requests, "generate_until", disable_tqdm)
        for request, text in zip(requests, found, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return found

    def _generate(self, context: str, settings: Mapping[str, Any]) -> str:
        settings = dict(settings)
        until = handle_stop_sequences(settings.pop("until", None), eos=self.tokenizer.decode([self.eot_token_id]))
        most = int(settings.pop("max_gen_toks", self.max_gen_toks))
        sampled = settings.pop("do_sample", None)
        temperature = float(settings.pop("temperature", 0.0 if not sampled else 1.0))
        if sampled is False:
            temperature = 0.0
        top_p = float(settings.pop("top_p", 1.0))
        if settings:
            raise ValueError(f"the model `{NAME}` generates without `{min(settings)}`; leave it out")
        job = Job(
            self._led(self.tok_encode(context), self.max_length - most), edits=self._edits, most=most,
            temperature=temperature, top_p=top_p, seed=0, stop=tuple(filter(None, until)),
        )  # fmt: skip
        answer = Answer()
        for event in self.service.engine.events(job):
            if isinstance(event, Token | End):
                answer.add(event)
        return answer.text

    def _led(self, ids: Sequence[int], most: int) -> tuple[int, ...]:
        """The last ids that fit, behind the begin token."""
        bos = self.tokenizer.bos_token_id
        if bos is None:
            return tuple(ids[-most:])
        own = list(ids[1:] if ids and ids[0] == bos else ids)
        return (bos, *own[-(most - 1) :])


def main() -> None:
    """lm-eval's own command line, with this model registered."""
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.registry import model_registry

    if NAME not in model_registry:
        model_registry.register(NAME, target=f"{__spec__.name if __spec__ else __name__}:AffectLensLM")
    cli_evaluate()


if __name__ == "__main__":
    main()
