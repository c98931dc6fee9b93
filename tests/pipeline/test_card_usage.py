"""Every example under "How to use" in a model card runs, and all of them give the same probabilities."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from huggingface_hub import snapshot_download

from finetune import load_classifier
from finetune.cli import main
from tests.support.hub_server import hub_server

TEXT, SECOND = "Replace this with your text.", "And this with the second text."


def usage(card: str) -> list[tuple[str, str]]:
    """Return language and text of each example."""
    part = card.partition("## How to use")[2].partition("\n## ")[0]
    return re.findall(r"```(\w+)\n(.*?)```", part, re.DOTALL)


def run_bash(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the lines of an example for a shell in this process, but for those that only write a file."""
    for line in text.splitlines():
        command, _, target = line.partition(" | ")
        words = shlex.split(target or command)
        if words[:2] == ["hf", "download"]:
            snapshot_download(words[2], local_dir=words[4])
        elif words[:2] == ["finetune", "predict"]:
            if target:
                monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode() + b"\n")))
            assert main(words[1:]) == 0
        else:
            subprocess.run(["bash", "-c", line], check=True)


def check_usage(
    card: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, pairs: bool = False
) -> list[str]:
    """Run all examples in the working directory, compare their probabilities, and return their languages."""
    (prediction,) = load_classifier(folder).predict([(TEXT, SECOND) if pairs else TEXT])
    expected = sorted(prediction.probabilities.values())
    examples = usage(card)
    for language, text in examples:
        capsys.readouterr()
        if language == "python":
            exec(compile(text, "README.md", "exec"), {"__name__": "__main__"})
        else:
            run_bash(text, monkeypatch)
        numbers = [float(number) for number in re.findall(r"\b[01]\.\d{2,}(?:e-\d+)?", capsys.readouterr().out)]
        assert numbers, text
        assert max(numbers) == pytest.approx(expected[-1], abs=1e-5), text  # measured: 2e-7
    return [language for language, _ in examples]


def test_the_card_of_a_run_with_an_adapter(
    lora_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(lora_run, tmp_path / "run"))
    monkeypatch.chdir(run)
    card = (run / "README.md").read_text()
    assert check_usage(card, run, monkeypatch, capsys) == ["python", "python", "bash"]
    assert "AutoPeftModelForSequenceClassification" in card


@pytest.mark.parametrize("pairs", [False, True])
def test_the_card_of_a_published_model(
    lora_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], pairs: bool
) -> None:
    run = Path(shutil.copytree(lora_run, tmp_path / "run"))
    if pairs:  # the model accepts pairs too, whatever it was trained on
        recipe = (run / "recipe.yaml").read_text()
        (run / "recipe.yaml").write_text(recipe.replace("text_pair_column: null", "text_pair_column: other"))
        info = json.loads((run / "model" / "classifier.json").read_text())
        (run / "model" / "classifier.json").write_text(json.dumps(info | {"text_columns": ["sentence", "other"]}))
    assert main(["merge", str(run)]) == 0
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with hub_server(monkeypatch) as hub:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        assert main(["publish", str(run), "--model", "merged", "--repo", "me/my-model"]) == 0
        card = hub.repositories["me/my-model"].files["README.md"].decode()
        assert check_usage(card, run / "merged", monkeypatch, capsys, pairs=pairs) == ["python", "python", "bash"]
        assert any(request.endswith("/model.safetensors") for request in hub.requests)


def test_a_model_of_this_toolkit_alone_has_no_example_for_transformers(small_run: Path) -> None:
    card = (small_run / "README.md").read_text()
    assert [language for language, _ in usage(card)] == ["python", "bash"]
    assert "Transformers alone cannot load this model." in card
    assert "library_name: finetune\n" in card
