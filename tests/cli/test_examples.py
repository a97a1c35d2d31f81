"""Every example that `--help` shows does what it says, in a folder with small recipes of the same names."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from threefold.arguments import build, every
from threefold.cli import main

ROOT = Path(__file__).parents[2]
EXAMPLES = list(dict.fromkeys(example for parser in every(build()) for example in parser.examples))
ROWS = [{"question": f"{a}+{b}=", "answer": str(a + b)} for a in range(4) for b in range(4)]
DEMO = {
    "model": {"name": "model"},
    "data": {"train": "train.jsonl", "test": "train.jsonl"},
    "prompt": {"style": "generic", "answer_format": "([0-9])"},
    "training": {"steps": 2, "prompts_per_step": 2, "group_size": 4, "max_completion_tokens": 8},
    "evaluation": {"problems": 4, "greedy": False},
    "run": {"dir": "runs/demo"},
}
ERRANDS = {
    "model": {"name": "tiny-words"},
    "environment": {"name": "errands", "turns": 2, "turn_tokens": 2, "completion_tokens": 200},
    "skills": {"creator": "offline", "bank": "bank"},
    "training": {"steps": 1, "prompts_per_step": 2, "group_size": 2},
    "evaluation": {"before": False, "after": False},
    "run": {"dir": "runs/errands"},
}


@pytest.fixture
def folder(tmp_path: Path, make_model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the examples name: two recipes, a trained run with a skill bank, and skills of others."""
    monkeypatch.chdir(tmp_path)
    make_model(max_position_embeddings=512).save_pretrained("model")
    tokenizer.save_pretrained("model")
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    Path("recipes").mkdir()
    for name, data in {"demo": DEMO, "errands": ERRANDS}.items():
        Path("recipes", f"{name}.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
    bank = ROOT / "recipes" / "banks" / "errands"
    assert main(["skills", "export", str(bank), "bank"]) == 0
    assert main(["train", "recipes/errands.yaml", "--quiet"]) == 0
    for skills, name in (("more", "look-first"), ("my-skills", "ask-first")):
        path = Path(skills, name, "SKILL.md")
        path.parent.mkdir(parents=True)
        path.write_text(f"---\nname: {name}\ndescription: You are new here.\n---\nLook around.\n")
    assert main(["skills", "import", "my-bank", "bank"]) == 0
    assert main(["skills", "import", "my-bank", "more"]) == 0
    return tmp_path


def test_examples_run_in_the_order_of_the_help(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = {}
    for example in EXAMPLES:
        words = shlex.split(example)
        if words[1:3] in (["doctor", "recipe.yaml"], ["train", "recipe.yaml"], ["view", "runs/problems"]):
            continue  # the front page's tour is run with the embedded model by the quickstart
        capsys.readouterr()
        assert words[0] == "threefold"
        assert main(words[1:]) == 0, example
        said[example] = capsys.readouterr().out
    for file in ("recipe.yaml", "my-recipe.yaml", "demo.json", "comparison.html", "runs/short/report.html",
                 ".agents/skills/get-key-before-open-something/SKILL.md"):  # fmt: skip
        assert (folder / file).stat().st_size > 0, file
    steps = [json.loads(line)["step"] for line in Path("runs/demo/metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 41))  # the last example went on with the second's run
    events = [
        json.loads(line) for line in said[next(e for e in EXAMPLES if "credit.method" in e)].splitlines()
    ]
    assert [event["event"] for event in events] == ["start", "step", "step", "result", "end"]
    findings = json.loads(said["threefold doctor recipes/demo.yaml --json"])
    assert findings["ok"]
    assert {"machine", "dry step"} <= {finding["what"] for finding in findings["findings"]}
    assert "look-first" in said["threefold skills diff my-bank v0 v1"]
