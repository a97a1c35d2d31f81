"""The doctor finds what a run would trip over: real tokenizers, real weights, a real server."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from threefold.cli import main
from threefold.recipe import parse_recipe
from threefold.training.doctor import Finding, examine
from threefold.training.endpoints import endpoints_of, reach
from threefold.training.memory_estimate import empty_model, estimate_memory
from threefold.training.run import check
from tiny_parts import tiny_model

ROWS = [{"question": f"{a}+{b}=", "answer": str(a + b)} for a in range(4) for b in range(4)]


@pytest.fixture
def recipe(tmp_path: Path, model_folder: Path) -> Callable[..., Any]:
    """A recipe on the tiny model and a file of sums; keywords are dotted keys, with __ for the dot."""
    for name, rows in (("train", ROWS), ("test", [{"question": "5+3=", "answer": "8"}])):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")

    def make(**changes: Any) -> Any:
        settings = {
            "model__name": str(model_folder),
            "data__train": str(tmp_path / "train.jsonl"),
            "data__test": str(tmp_path / "test.jsonl"),
            "prompt__style": "generic",
            "prompt__answer_format": "final-answer",
            "training__steps": 2,
            "training__prompts_per_step": 2,
            "training__group_size": 4,
            "training__max_completion_tokens": 8,
            "run__dir": str(tmp_path / "run"),
            **changes,
        }
        data: dict[str, dict[str, Any]] = {}
        for key, value in settings.items():
            section, _, name = key.partition("__")
            data.setdefault(section, {})[name] = value
        return parse_recipe(data)

    return make


def found(findings: list[Finding], what: str, level: str) -> str:
    return " ".join(f.text for f in findings if f.what == what and f.level == level)


def test_a_sound_recipe_is_found_sound_and_its_step_is_rehearsed(
    recipe: Callable[..., Any], tmp_path: Path
) -> None:
    findings = list(examine(recipe()))
    assert [f for f in findings if f.level == "fail"] == []
    assert {"machine", "versions", "disk", "data", "batch", "tokenizer", "template", "answers", "model",
            "memory", "dry step", "time"} <= {f.what for f in findings}  # fmt: skip
    assert "16 training problems, 1 held out" in found(findings, "data", "ok")
    assert "16 true answers are found" in found(findings, "answers", "ok")
    assert "1 held-out problems give wide intervals" in found(findings, "data", "warn")
    assert "(measured)" in found(findings, "dry step", "ok")
    assert not (tmp_path / "run").exists()


def test_what_train_would_refuse_fails_with_its_message(recipe: Callable[..., Any]) -> None:
    findings = list(examine(recipe(training__prompts_per_step=64), step=False))
    assert "fewer than training.prompts_per_step = 64" in found(findings, "recipe", "fail")
    assert findings[-1].what == "recipe"


def test_weights_that_are_not_there_fail_the_dry_step(recipe: Callable[..., Any], model_folder: Path) -> None:
    (model_folder / "model.safetensors").unlink()
    findings = list(examine(recipe()))
    assert "no causal language model could be loaded" in found(findings, "dry step", "fail")


def test_held_out_questions_that_are_trained_on_are_counted(
    recipe: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "test.jsonl").write_text(json.dumps(ROWS[3]) + "\n", encoding="utf-8")
    assert "1 of 1 held-out questions are training questions" in found(
        list(examine(recipe(), step=False)), "data", "warn"
    )


def test_a_template_that_never_ends_is_named(
    recipe: Callable[..., Any], model_folder: Path, tokenizer: Any
) -> None:
    sound = tokenizer.chat_template
    for template, message in (
        (sound.replace("<eos>", ""), "does not close an answer with the end token '<eos>'"),
        (sound.replace("a:{{", "b:{{"), "does not begin with the rendered prompt"),
        (sound.replace("}}<eos>", "[:2] }}<eos>"), "does not come back"),
    ):
        tokenizer.chat_template = template
        tokenizer.save_pretrained(model_folder)
        assert message in found(list(examine(recipe(), step=False)), "template", "warn")


def test_memory_is_the_sum_of_its_parts(recipe: Callable[..., Any]) -> None:
    from transformers import AutoConfig

    checked = check(recipe(training__kl=0.1))
    config = AutoConfig.from_pretrained(checked.prepared.recipe.model.name)
    estimate = estimate_memory(checked, config, empty_model(config))
    # Vocabulary 99 x 32 once (tied); a layer: q and o 32 x 32, k and v 32 x 16, three of 32 x 64, two norms.
    parameters = 99 * 32 + 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32) + 32
    assert estimate.parameters == estimate.trained == parameters
    assert estimate.fixed["weights"] == estimate.fixed["gradients"] == 4 * parameters
    assert estimate.fixed["optimizer (two moments)"] == 8 * parameters
    assert estimate.fixed["reference model (training.kl)"] == 4 * parameters
    assert estimate.fixed["frozen initial model (signals)"] == 0
    length = checked.prepared.work.longest_prompt + 8
    assert estimate.update["activations of a micro-batch"] == 8 * length * 32 * 34 * 2 * 2
    assert estimate.update["logits of a micro-batch"] == 8 * 9 * 99 * 4 * 3
    assert estimate.generation["keys and values while generating"] == 8 * length * 2 * 2 * 2 * 8 * 4
    assert estimate.total == sum(size for _, size in estimate.table())


def test_one_initial_model_serves_signals_and_the_kl_term(recipe: Callable[..., Any]) -> None:
    from transformers import AutoConfig

    checked = check(recipe(training__kl=0.1, credit__method="ispo-paper"))
    config = AutoConfig.from_pretrained(checked.prepared.recipe.model.name)
    estimate = estimate_memory(checked, config, empty_model(config))
    assert estimate.fixed["reference model (training.kl)"] == 4 * estimate.parameters
    assert estimate.fixed["frozen initial model (signals)"] == 0


def test_adapters_train_few_parameters_and_need_no_copies(recipe: Callable[..., Any]) -> None:
    from peft import get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    checked = check(recipe(model__lora={"r": 4}, credit__method="ispo-paper", training__kl=0.1))
    name = checked.prepared.recipe.model.name
    config = AutoConfig.from_pretrained(name)
    estimate = estimate_memory(checked, config, empty_model(config))
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(name), checked.lora)
    assert estimate.trained == sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert estimate.fixed["frozen initial model (signals)"] == 0


# Endpoints


@pytest.fixture
def server() -> Iterator[Callable[[int, str], str]]:
    """A server that answers every GET with the status and text that it is set to; returns its address."""
    answer: dict[str, Any] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = answer["text"].encode()
            self.send_response(answer["status"])
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            answer["path"] = self.path

        def log_message(self, *_: Any) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()

    def set_to(status: int, text: str) -> str:
        answer.update(status=status, text=text)
        return f"http://127.0.0.1:{running.server_port}/v1"

    yield set_to
    running.shutdown()
    running.server_close()


def test_servers_are_asked_for_their_models(server: Callable[[int, str], str], monkeypatch: Any) -> None:
    listed = json.dumps({"data": [{"id": "small"}]})
    for status, text, settings, good, message in [
        (200, listed, {"model": "small"}, True, "answers and serves small"),
        (200, listed, {"model": "large"}, False, "serves small, not large"),
        (200, "hello", {"model": "large"}, True, "lists no models"),
        (404, "", {}, True, "status 404"),
        (401, "", {}, False, "refuses the key"),
        (503, "", {}, False, "not ready"),
        (200, listed, {"api_key_env": "THREEFOLD_NO_SUCH_KEY"}, False, "is not set: export it"),
    ]:
        assert (found := reach({"base_url": server(status, text), **settings}))[0] == good, found
        assert message in found[1]
    good, said = reach({"base_url": "http://127.0.0.1:9/v1"})
    assert not good
    assert "does not answer" in said


def test_servers_are_found_wherever_a_recipe_names_them() -> None:
    recipe = parse_recipe(
        {
            "environment": {"name": "toy", "options": {"patient": {"base_url": "http://a/v1", "model": "m"}}},
            "training": {"trl": {"use_vllm": True, "vllm_mode": "server", "vllm_server_port": 9}},
        }
    )
    named = {where: endpoint["base_url"] for where, endpoint in endpoints_of(recipe.model_dump())}
    assert named == {
        "environment.options.patient": "http://a/v1",
        "training.trl.use_vllm": "http://0.0.0.0:9",
    }


def test_command_says_so_and_exits_with_2_where_something_fails(
    recipe: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe().model_dump()), encoding="utf-8")
    assert main(["doctor", str(path), "--no-step"]) == 0
    said = capsys.readouterr().out
    assert "\nok   answers " in said
    assert "dry step" not in said
    assert (
        main(["doctor", str(path), "--no-step", "training.group_size=4", "training.prompts_per_step=64"]) == 2
    )
    assert "fail recipe" in capsys.readouterr().out


def test_checkpoints_that_the_disk_cannot_hold_fail(recipe: Callable[..., Any], monkeypatch: Any) -> None:
    """About 16 000 weights in fp32: a checkpoint is three times 64 kB, and the model is written besides."""
    sound = recipe(training__save_every=1, training__keep_checkpoints=3)
    parameters = sum(p.numel() for p in tiny_model().parameters())
    needed = 4 * parameters * (3 * (3 + 1) + 1)
    usage = shutil.disk_usage(".")
    for free, level in ((needed - 1, "fail"), (needed + 1, "warn"), (2 * needed, "ok")):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: usage._replace(free=free))
        assert "checkpoints and the model need" in found(list(examine(sound, step=False)), "disk", level)


def test_a_trl_that_moved_its_private_parts_fails(recipe: Callable[..., Any], monkeypatch: Any) -> None:
    from trl import GRPOTrainer

    monkeypatch.delattr(GRPOTrainer, "_calculate_rewards")
    said = found(list(examine(recipe(), step=False)), "versions", "fail")
    assert "_calculate_rewards" in said
    assert "Install trl>=1.16" in said
