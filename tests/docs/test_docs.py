"""The pages say what the code does: blocks run, links resolve, commands parse, tables are complete."""

from __future__ import annotations

import ast
import re
import shlex
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from packaging.requirements import Requirement
from pydantic import BaseModel

from threefold import ISPO, T2GRPO, GiGPO, cli
from threefold.credit import CreditBatch, Signals
from threefold.recipe import Recipe
from threefold.recipe_credit import METHODS, method_settings
from threefold.training.diagnostics import diagnose

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "AGENTS.md", "CHANGELOG.md")] + sorted(ROOT.glob("docs/*.md"))
NOT_RUN = "<!-- not run: needs a hub model -->"
NEEDS = re.compile(r"<!-- run where threefold\[(?P<extra>\w+)\] is installed -->")
FENCE = re.compile(
    r"^(?P<before>[^\n]*)\n(?:\n)?```(?P<language>\w+)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL
)


def blocks(page: Path, language: str) -> list[tuple[str, bool]]:
    """The fenced blocks of a language, each with whether the page says that it is not to be run."""
    found = FENCE.finditer("\n\n" + page.read_text(encoding="utf-8"))
    return [(m["body"], not_to_run(m["before"].strip())) for m in found if m["language"] == language]


def not_to_run(before: str) -> bool:
    """Whether the line before a block keeps it from being run here."""
    needs = NEEDS.fullmatch(before)
    return before == NOT_RUN or (needs is not None and not installed(needs["extra"]))


def installed(extra: str) -> bool:
    """Whether every package of one of our extras is here."""
    wanted = [Requirement(line) for line in metadata.requires("threefold") or []]
    names = [r.name for r in wanted if r.marker is not None and f'extra == "{extra}"' in str(r.marker)]
    assert names, f"there is no extra {extra}"
    try:
        for name in names:
            metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def ids(page: Path) -> str:
    return page.name


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_python_blocks_run_in_the_order_of_the_page(page: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "docs_example"}
    for number, (body, not_run) in enumerate(blocks(page, "python"), 1):
        code = compile(body, f"{page.name}, python block {number}", "exec", dont_inherit=True)
        if not not_run:
            exec(code, namespace)


def test_enough_blocks_are_run() -> None:
    runnable = {page.name for page in PAGES for _, not_run in blocks(page, "python") if not not_run}
    assert {"credit.md", "environments.md", "ispo.md", "evaluation.md", "t2grpo.md"} <= runnable
    assert {"verifiers.md", "patient-rules.md", "verl.md"} <= runnable


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_relative_links_resolve(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        file = page if not path else page.parent / path
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_commands_parse(page: Path) -> None:
    for body, _ in blocks(page, "bash"):
        for line in body.replace("\\\n", " ").splitlines():
            words = shlex.split(re.split(r"\s[>|]\s", line)[0], comments=True)
            start = next((i for i, word in enumerate(words) if word in ("threefold", "threefold.cli")), None)
            if start is not None:
                try:
                    cli.parse(words[start + 1 :])
                except SystemExit as stop:
                    pytest.fail(f"{page.name}: {line!r} does not parse (status {stop.code})")


def test_make_targets_of_the_pages_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    named = {
        target
        for page in PAGES
        for body, _ in blocks(page, "bash")
        for target in re.findall(r"^make ([\w-]+)", body, re.MULTILINE)
    }
    assert {"demo", "test"} <= named
    assert named <= targets


def test_recipe_page_lists_every_key_with_its_default() -> None:
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([\w.]+)` \| `([^`]*)` \|", text, re.MULTILINE))
    wanted: dict[str, Any] = {}
    for section, part in Recipe.model_fields.items():
        assert part.annotation is not None
        for key, field in part.annotation.model_fields.items():
            default = field.get_default(call_default_factory=True)
            inner = default.model_dump() if isinstance(default, BaseModel) else {"": default}
            wanted |= {f"{section}.{key}.{name}".rstrip("."): value for name, value in inner.items()}
    assert set(rows) >= {f"credit.{key}" for method in METHODS for key in method_settings(method)}
    lora = Recipe.model_validate({"model": {"lora": {}}}).model.lora
    assert lora is not None
    wanted |= {f"model.lora.{key}": value for key, value in lora.model_dump().items()}
    sampling = Recipe.model_validate({"training": {"dynamic_sampling": {}}}).training.dynamic_sampling
    assert sampling is not None
    wanted |= {f"training.dynamic_sampling.{key}": value for key, value in sampling.model_dump().items()}
    chat = Recipe.model_validate(
        {"skills": {"creator": "chat", "chat": {"base_url": "http://here", "model": "m"}}}
    ).skills.chat
    assert chat is not None
    wanted |= {f"skills.chat.{key}": value for key, value in chat.model_dump().items()}
    wanted |= {f"skills.chat.{key}": "required" for key in ("base_url", "model")}
    assert rows.keys() == wanted.keys()
    for key, default in wanted.items():
        shown = yaml.safe_load(rows[key])
        assert (float(shown) if isinstance(default, float) else shown) == default, key


def test_metrics_page_explains_every_metric() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"`([\w/@.-]+)`", text))
    written = {name for name in credited_metrics() if name not in explained}
    assert not written
    source = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "src/threefold/training").glob("*.py"))
    clocks = {f"time/{name}" for name in re.findall(r"(?:seconds\[\"|\"time/)(\w+)\"", source)}
    assert clocks
    assert clocks <= explained
    rooms = [p for room in ("training", "skills") for p in (ROOT / "src/threefold" / room).glob("*.py")]
    of_skills = set(re.findall(r'"(skills/\w+)"', "".join(p.read_text(encoding="utf-8") for p in rooms)))
    assert {"skills/probability_new", "skills/share_new"} <= of_skills <= explained


def credited_metrics() -> set[str]:
    """Names of all figures of a batch in which everything happens: a mixed, a right and a wrong group."""
    outcome_B = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 0.0])
    mask_BT = torch.ones(6, 10, dtype=torch.bool)
    entropy_BT = torch.rand(6, 10, generator=torch.Generator().manual_seed(0)) * 0.2
    answer_BA = mask_BT[:, :2]
    batch = CreditBatch(
        rewards={"accuracy": outcome_B},
        weights={"accuracy": 1.0},
        group_B=torch.tensor([0, 0, 1, 1, 2, 2]),
        mask_BT=mask_BT,
        turn_BT=torch.zeros(6, 10, dtype=torch.int64),
        signals=Signals(
            logp_BT=-entropy_BT,
            entropy_BT=entropy_BT,
            base_logp_BT=-entropy_BT - 1,
            thinking_BT=mask_BT,
            answer_BA=answer_BA,
            answer_logp_BA=-entropy_BT[:, :2],
            ablated_answer_logp_BA=-entropy_BT[:, :2] - 1,
            answer_ids_BA=torch.arange(12).view(6, 2),
            self_certainty_BT=entropy_BT,
            reference_BR=answer_BA,
            reference_logp_BR=-entropy_BT[:, :2],
            ablated_reference_logp_BR=-entropy_BT[:, :2] - 1,
        ),
    )
    advantages = ISPO(outcome="accuracy", noise_control="shuffle").assign(batch)
    logp_B = batch.signals.answer_logp_BA.sum(dim=1)
    names = set(diagnose(batch, advantages, outcome_B, answer_logp_B=logp_B)) | set(advantages.metrics)
    for estimator in METHODS.values():
        if estimator is not None and not hasattr(estimator, "turns"):
            names |= set(estimator.assign(batch).metrics)
    assert {"ispo/noise_moved", "ispo/hinge", "lens/penalty_wrong", "gtpo/non_finite_signals"} <= names
    turn_BK = torch.ones(6, 1)
    batch = replace(
        batch,
        rewards={"NAME": outcome_B},
        weights={"NAME": 1.0},
        turn_rewards={"NAME": turn_BK},
        turn_state={"NAME": turn_BK},
        turn_mask_BK=turn_BK.bool(),
        violation_B=outcome_B.bool(),
    )
    for by_turn in (T2GRPO(turns=("NAME",)), GiGPO(turns=("NAME",), states=("NAME",))):
        names |= set(by_turn.assign(batch).metrics)
    assert "turns/tied_episode/NAME" in names
    assert "certainty/entropy_critical_wrong" in names
    assert "ispo/hinge_active" in names
    return names


def test_trl_page_names_every_overridden_method() -> None:
    text = (ROOT / "docs" / "trl.md").read_text(encoding="utf-8")
    overridden = set()
    training = ROOT / "src/threefold/training"
    for file in (training / "trainer.py", *(training / "trl_seam").glob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        overridden |= {
            method.name
            for method in ast.walk(tree)
            if isinstance(method, ast.FunctionDef)
            and method.name != "__init__"
            and f"super().{method.name}(" in ast.unparse(method)
        }
    assert "_calculate_rewards" in overridden
    assert {name for name in overridden if f"`{name}`" not in text} == set()


def test_the_licence_is_apache_2_whole() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Version 2.0, January 2004" in text
    assert text.rstrip().endswith("limitations under the License.")


def test_agents_page_stays_short() -> None:
    assert len((ROOT / "AGENTS.md").read_text(encoding="utf-8").splitlines()) < 60
