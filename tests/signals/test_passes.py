"""Signals as the trainer measures them: equal to teacher forcing, against the right base, in few passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch.utils._python_dispatch import TorchDispatchMode

from threefold import GRPO, ISPO, Limits, Speedups, ThreefoldTrainer
from threefold.credit.reference_answer import ReferenceAnswer
from threefold.credit.self_certainty import SelfCertainty
from threefold.envs.toy import EchoThenNext
from threefold.training.dynamic_sampling import DynamicSampling

DIGITS = Dataset.from_list([{"prompt": [{"role": "user", "content": str(i)}], "digit": i} for i in range(10)])
DIGIT_ANSWER = r"([0-9])"
LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def digit(completions: Any, trajectory: Any, **columns: Any) -> list[float]:
    """An outcome of whole episodes by the name that the estimators here read."""
    return [float(bool(episode.success)) for episode in trajectory]


class Watched(ThreefoldTrainer):
    """Keeps what was generated and measured, and notes every forward without a gradient."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.passes: list[tuple[str, int]] = []
        self.seen: list[tuple[list[list[int]], list[list[int]]]] = []
        self.batches: list[Any] = []
        self.answers: list[Any] = []
        super().__init__(*args, **options)

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, **options):
        if not torch.is_grad_enabled():
            frozen = {id(self._frozen_base): "base", id(self.ref_model): "reference"}
            self.passes.append((frozen.get(id(model), "policy"), logits_to_keep))
        return super()._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, logits_to_keep, **options
        )

    def _credit(self, output, generation):
        prompts = [
            ids[mask.bool()].tolist()
            for ids, mask in zip(output["prompt_ids"], output["prompt_mask"], strict=True)
        ]
        self.seen.append((prompts, [list(ids) for ids in generation.completion_ids]))
        return super()._credit(output, generation)

    def _assign(self, batch, output):
        self.batches.append(batch)
        self.answers.append(super()._assign(batch, output))
        return self.answers[-1]


def trained(build, credit, **options):
    trainer = build(Watched, credit=credit, answer_format=DIGIT_ANSWER, **options)
    trainer.train()
    return trainer


@torch.no_grad()
def teacher_forced(model, prompt, completion, temperature=1.0):
    """Log-probabilities and entropies of a completion's tokens, from the model's own logits."""
    logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
    log_probs = torch.log_softmax(logits.float() / temperature, dim=-1)
    chosen = log_probs[torch.arange(len(completion)), torch.tensor(completion)]
    return chosen, -(log_probs.exp() * log_probs).sum(dim=-1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_and_entropies_are_those_of_teacher_forcing(build, make_model, temperature):
    trainer = trained(
        build, ISPO("digit", combine="union"), args={"max_steps": 1, "temperature": temperature}
    )
    signals, (prompts, completions) = trainer.batches[0].signals, trainer.seen[0]
    initial = make_model().eval()
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        logp, entropy = teacher_forced(initial, prompt, completion, temperature)
        length = len(completion)
        torch.testing.assert_close(signals.logp_BT[row, :length], logp, atol=1e-5, rtol=0)
        torch.testing.assert_close(signals.entropy_BT[row, :length], entropy, atol=1e-5, rtol=0)
        torch.testing.assert_close(signals.base_logp_BT[row, :length], logp, atol=1e-5, rtol=0)


def test_ifd_is_the_answers_gain_from_its_reasoning(build, make_model):
    trainer = trained(build, ISPO("digit", lambda_token=0.0), args={"max_steps": 1})
    ifd_B, (prompts, completions) = trainer.answers[0].episode_signals["ifd"], trainer.seen[0]
    initial, answered = make_model().eval(), 0
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        text = "".join(chr(token + 29) if token > 2 else " " for token in completion)
        last = max((i for i, character in enumerate(text) if character.isdigit()), default=None)
        if last is None:
            assert ifd_B[row] == 0
            continue
        answered += 1
        with_reasoning = teacher_forced(initial, prompt + completion[:last], completion[last : last + 1])[0]
        without = teacher_forced(initial, prompt, completion[last : last + 1])[0]
        torch.testing.assert_close(ifd_B[row], (with_reasoning - without)[0], atol=1e-5, rtol=0)
    assert answered >= 2


@torch.no_grad()
def certainty_of(model, prompt, completion, temperature):
    """logsumexp(z) - mean z at a completion's tokens, from the model's own logits."""
    logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
    logits = logits.float() / temperature
    return logits.logsumexp(dim=-1) - logits.mean(dim=-1)


@pytest.mark.parametrize("lora", [False, True], ids=["all weights", "lora"])
def test_self_certainty_is_that_of_the_whole_logits(build, make_model, lora):
    args = {"max_steps": 1, "temperature": 0.7}
    options = {"peft_config": LORA} if lora else {}
    trainer = trained(build, SelfCertainty(), args=args, **options)
    signals, (prompts, completions) = trainer.batches[0].signals, trainer.seen[0]
    initial = make_model().eval()
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        expected = certainty_of(initial, prompt, completion, 0.7)
        certainty_T = signals.self_certainty_BT[row, : len(completion)]
        torch.testing.assert_close(certainty_T, expected, atol=1e-4, rtol=0)
    assert passes(trainer) == {"policy": 1}


def test_the_reference_is_scored_in_the_place_of_the_answer(build, make_model):
    trainer = trained(build, ReferenceAnswer(), args={"max_steps": 1})
    signals, (prompts, completions) = trainer.batches[0].signals, trainer.seen[0]
    initial, placed = make_model().eval(), 0
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        text = "".join(chr(token + 29) if token > 2 else " " for token in completion)
        question = "".join(chr(token + 29) if token > 2 else " " for token in prompt)
        last = max((i for i, character in enumerate(text) if character.isdigit()), default=None)
        assert bool(signals.reference_BR[row].any()) == (last is not None)
        if last is None:
            continue
        placed += 1
        a, b = (part[-1] for part in question.split("=")[0].split("+"))
        reference = [ord(character) - 29 for character in str(int(a) + int(b))]
        after = teacher_forced(initial, prompt + completion[:last], reference)[0]
        alone = teacher_forced(initial, prompt, reference)[0]
        torch.testing.assert_close(signals.reference_logp_BR[row, : len(reference)], after, atol=1e-5, rtol=0)
        torch.testing.assert_close(
            signals.ablated_reference_logp_BR[row, : len(reference)], alone, atol=1e-5, rtol=0
        )
    assert placed >= 2


def test_the_reference_s_column_and_an_odd_head_are_checked_before_the_first_step(build, dataset, make_model):
    with pytest.raises(ValueError, match="from a column 'answer', and the dataset has prompt; rename"):
        build(credit=ReferenceAnswer(), train_dataset=dataset.remove_columns("answer"))
    capped = make_model()
    capped.config.final_logit_softcapping = 30.0
    with pytest.raises(ValueError, match="the model's config sets final_logit_softcapping"):
        build(credit=SelfCertainty(), model=capped)


BASES = {
    "frozen copy": {},
    "adapter off": {"peft_config": LORA},
    "reference": {"args": {"beta": 0.05}},
    "base_model": {},
}


@pytest.mark.parametrize("kind", BASES)
def test_the_base_stays_the_initial_model_while_the_policy_moves(build, make_model, model_folder, kind):
    options = dict(BASES[kind])
    options["args"] = {"max_steps": 6, "learning_rate": 3e-2, **options.get("args", {})}
    if kind == "reference":
        options["model"] = str(model_folder)
    if kind == "base_model":
        options["base_model"] = make_model()
    trainer = trained(build, ISPO("digit", combine="union"), **options)
    initial, moved = make_model().eval(), 0.0
    for batch, (prompts, completions) in zip(trainer.batches, trainer.seen, strict=True):
        for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            logp, _ = teacher_forced(initial, prompt, completion)
            base_T = batch.signals.base_logp_BT[row, : len(completion)]
            torch.testing.assert_close(base_T, logp, atol=1e-5, rtol=0)
            moved = max(moved, float((batch.signals.logp_BT[row, : len(completion)] - logp).abs().max()))
    assert moved > 0.01


def passes(trainer):
    """Passes of the first generation batch, whole completions as "policy", answers alone as "answer"."""
    width = trainer.batches[0].mask_BT.size(1)
    counted: dict[str, int] = {}
    for which, keep in trainer.passes[: len(trainer.passes) // len(trainer.batches)]:
        name = which if keep == width else "answer"
        counted[name] = counted.get(name, 0) + 1
    return counted


COSTS = [
    (GRPO(), {}, {}),
    (ISPO("digit"), {}, {"policy": 1, "base": 1, "answer": 1}),
    (ISPO("digit", lambda_token=0.0), {}, {"policy": 1, "answer": 1}),
    (ISPO("digit", lambda_ifd=0.0), {}, {"policy": 1, "base": 1}),
    (ISPO("digit", lambda_ifd=0.0, combine="entropy"), {}, {"policy": 1}),
    # TRL scores the old policy here, so our pass is saved.
    (ISPO("digit"), {"steps_per_generation": 4}, {"policy": 1, "base": 1, "answer": 1}),
    (GRPO(), {"steps_per_generation": 4}, {"policy": 1}),
    # TRL scores the reference, so our pass on the base is saved.
    (ISPO("digit"), {"beta": 0.05}, {"policy": 1, "reference": 1, "answer": 1}),
    (ISPO("digit"), {"beta": 0.05, "steps_per_generation": 4}, {"policy": 1, "reference": 1, "answer": 1}),
]


@pytest.mark.parametrize(("credit", "args", "expected"), COSTS)
def test_forward_passes_are_as_few_as_the_needs_allow(build, model_folder, credit, args, expected):
    options = {"model": str(model_folder)} if "beta" in args else {}
    trainer = trained(build, credit, args={"max_steps": 2, **args}, **options)
    assert passes(trainer) == expected


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("lora", [False, True], ids=["all weights", "lora"])
def test_what_our_sampler_saw_is_what_a_pass_would_measure(build, make_model, temperature, lora):
    """Log-probabilities and entropies come with the samples: no pass of the policy, and equal to 1e-5."""
    trainer = trained(
        build,
        ISPO("digit"),
        sampler="threefold",
        args={"max_steps": 2, "temperature": temperature, "top_k": 20},
        **({"peft_config": LORA} if lora else {}),
    )
    # With LoRA the base is the policy without its adapter.
    assert passes(trainer) == ({"policy": 1, "answer": 1} if lora else {"base": 1, "answer": 1})
    signals, (prompts, completions) = trainer.batches[0].signals, trainer.seen[0]
    initial = make_model().eval()
    lengths = set()
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        logp, entropy = teacher_forced(initial, prompt, completion, temperature)
        length = len(completion)
        lengths.add(length)
        torch.testing.assert_close(signals.logp_BT[row, :length], logp, atol=1e-5, rtol=0)
        torch.testing.assert_close(signals.entropy_BT[row, :length], entropy, atol=1e-5, rtol=0)
        torch.testing.assert_close(signals.base_logp_BT[row, :length], logp, atol=1e-5, rtol=0)
        assert not signals.entropy_BT[row, length:].any()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_what_our_sampler_saw_in_dialogues_is_what_a_pass_would_measure(build, make_model, temperature):
    """Both turns of every episode, with the environment's tokens between them."""
    trainer = trained(
        build,
        ISPO("digit"),
        sampler="threefold",
        reward_funcs=digit,
        environment=EchoThenNext,
        train_dataset=DIGITS,
        limits=Limits(turns=2, turn_tokens=4, completion_tokens=24),
        args={"max_steps": 1, "temperature": temperature, "max_completion_length": 24},
    )
    assert passes(trainer) == {"base": 1, "answer": 1}
    batch, (prompts, completions) = trainer.batches[0], trainer.seen[0]
    initial = make_model().eval()
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        logp, entropy = teacher_forced(initial, prompt, completion, temperature)
        mine = batch.turn_BT[row, : len(completion)] >= 0
        assert 0 < mine.sum() < len(completion)
        for measured, expected in ((batch.signals.logp_BT, logp), (batch.signals.entropy_BT, entropy)):
            measured_T = measured[row, : len(completion)]
            torch.testing.assert_close(measured_T[mine], expected[mine], atol=1e-5, rtol=0)


def test_episodes_without_a_turn_are_scored_too(build):
    """Environments that fail at their start leave rows that nothing was sampled for."""

    class FailsOnOdd(EchoThenNext):
        def reset(self, task, seed, member):
            if member % 2:
                raise ConnectionError("no simulator")
            return super().reset(task, seed, member)

    trainer = trained(
        build,
        ISPO("digit"),
        sampler="threefold",
        reward_funcs=digit,
        environment=FailsOnOdd,
        train_dataset=DIGITS,
        limits=Limits(turns=2, turn_tokens=4, completion_tokens=24),
        args={"max_steps": 1, "max_completion_length": 24},
    )
    assert passes(trainer).get("policy") is None
    entropy_BT, mask_BT = trainer.batches[0].signals.entropy_BT, trainer.batches[0].mask_BT
    assert mask_BT.any(dim=1).tolist() == [True, False] * (len(mask_BT) // 2)
    assert (entropy_BT[mask_BT] > 0).all()


def test_episodes_that_dynamic_sampling_puts_together_are_scored_by_a_pass(build):
    """Samples of replaced groups are not those that are trained on."""
    trainer = trained(
        build,
        ISPO("digit"),
        sampler="threefold",
        dynamic_sampling=DynamicSampling(max_rounds=2),
        args={"max_steps": 1, "max_completion_length": 2},  # a digit is rare: most groups are dead
    )
    assert trainer.state.log_history[0]["dynamic_sampling/replaced"] > 0
    assert [which for which, _ in trainer.passes[:2]] == ["policy", "base"]


def test_half_precision_is_scored_by_a_pass(build, make_model):
    """Decoding and a whole forward round differently there."""
    model = make_model().to(torch.bfloat16)
    trainer = trained(build, ISPO("digit"), sampler="threefold", model=model, args={"max_steps": 1})
    assert passes(trainer) == {"policy": 1, "base": 1, "answer": 1}


def test_self_certainty_is_measured_beside_shared_prompts(build):
    """It watches the backbone, which shared prompts call in pieces."""
    plain, shared = (
        trained(build, SelfCertainty(), args={"max_steps": 1}, speedups=speedups).batches[0].signals
        for speedups in (None, Speedups())
    )
    torch.testing.assert_close(shared.self_certainty_BT, plain.self_certainty_BT)
    torch.testing.assert_close(shared.logp_BT, plain.logp_BT)


def test_with_lora_the_base_is_the_policys_own_pass_with_the_adapter_off(build):
    trainer = trained(build, ISPO("digit"), args={"max_steps": 1}, peft_config=LORA)
    assert trainer._frozen_base is None
    assert passes(trainer) == {"policy": 2, "answer": 1}


def test_signals_for_the_diagnostics_alone(build):
    trainer = trained(build, GRPO(), args={"max_steps": 4}, signals_every=2)
    assert [batch.signals.entropy_BT is not None for batch in trainer.batches] == [True, False, True, False]


class Largest(TorchDispatchMode):
    """Notes the largest tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


class Measured(Watched):
    largest = 0

    def _score(self, *args, **options):
        with Largest() as noted:
            scored = super()._score(*args, **options)
        self.largest = max(self.largest, noted.elements)
        return scored


@pytest.mark.parametrize("credit", [ISPO("digit"), SelfCertainty()], ids=["ISPO", "self-certainty"])
def test_no_tensor_over_batch_tokens_and_vocabulary(build, make_model, credit):
    """The vocabulary is scored in tiles; a whole (B, T, V) would be the largest tensor by far."""
    vocabulary = 150_000
    model = make_model(vocab_size=vocabulary, hidden_size=8, intermediate_size=8)
    trainer = build(
        Measured,
        credit=credit,
        answer_format=DIGIT_ANSWER,
        model=model,
        args={"max_steps": 1, "max_completion_length": 24, "gradient_accumulation_steps": 1},
    )
    trainer.train()
    whole = trainer.batches[0].mask_BT.numel() * vocabulary
    assert 0 < trainer.largest < whole / 3


def test_a_frozen_copy_at_another_precision_is_refused(build):
    with pytest.raises(ValueError, match="cast_lm_head_to_fp32"):
        build(credit=ISPO("digit"), args={"cast_lm_head_to_fp32": True})
