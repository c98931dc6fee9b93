"""Publishing a run to a stand-in for the hub: finetune/pipeline/publish.py."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from huggingface_hub import ModelCard

from finetune.cli import main
from finetune.recipe.loader import load_recipe
from tests.support.finished_runs import contents
from tests.support.helpers import HANG_SECONDS
from tests.support.hub_server import WRITER, HubServer, publish

MODEL = {"README.md", "classifier.json", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
MODEL |= {"conformal.json", "config_sentence_transformers.json", "modules.json", "sentence_bert_config.json"}
FILES = MODEL | {"heads.json", "recipe.yaml", "report.html", "scores.json"}


def texts_of(run: Path) -> list[str]:
    recipe = load_recipe(run / "recipe.yaml", read_data=False)
    texts = [str(row["sentence"]) for row in (recipe.data.train_rows or []) + (recipe.data.validation_rows or [])]
    texts += pq.read_table(run / "predictions.parquet")["text"].to_pylist()
    assert len(texts) > 100
    return texts


def test_a_run_is_published_without_texts_and_paths(
    small_run: Path, hub: HubServer, capfd: pytest.CaptureFixture[str]
) -> None:
    before = contents(small_run)
    assert publish(small_run, "--private", "--language", "en", "--license", "apache-2.0") == 0
    output = capfd.readouterr()
    announced, published = output.out.splitlines()
    assert re.fullmatch(rf"Uploading {len(FILES)} files, \d+\.\d MB, to me/my-model\.", announced)
    assert published == f"Published: {hub.endpoint}/me/my-model"
    assert output.err == ""
    repository = hub.repositories["me/my-model"]
    assert repository.private
    assert repository.files.keys() == FILES
    assert [sorted(commit) for commit in repository.commits] == [sorted(FILES)]
    assert repository.files["model.safetensors"] == (small_run / "model/model.safetensors").read_bytes()
    assert repository.files["scores.json"] == (small_run / "scores.json").read_bytes()
    text = b"\n".join(content for name, content in repository.files.items() if name != "model.safetensors").decode()
    for path in (str(small_run), str(small_run.parent), str(Path.home()) + "/"):
        assert path not in text
    assert [row for row in texts_of(small_run) if row in text] == []
    card = ModelCard(repository.files["README.md"].decode())
    assert (card.data.language, card.data.license) == (["en"], "apache-2.0")
    assert contents(small_run) == before


def test_messages_and_hidden_files_of_this_machine_stay_here(run: Path, hub: HubServer) -> None:
    cache = run / "model" / ".cache" / "huggingface" / "config.json.metadata"
    cache.parent.mkdir(parents=True)
    cache.write_text("text of a cache")
    heads = json.loads((run / "heads.json").read_text())
    heads["warnings"] = ["It failed: model '/home/me/models/tiny' has no config.json.", f"No base in {run}/base."]
    (run / "heads.json").write_text(json.dumps(heads))
    reason = "OSError: [Errno 28] No space left on device: '/scratch/me/x.bin'"
    (run / "heads_failure.json").write_text(json.dumps({"reason": reason}))
    assert publish(run) == 0
    files = hub.repositories["me/my-model"].files
    assert files.keys() == FILES
    published = json.loads(files["heads.json"])
    assert published["warnings"] == ["It failed: model 'tiny' has no config.json.", "No base in run/base."]
    assert published["methods"] == heads["methods"]
    assert (
        "The head analysis failed: OSError: [Errno 28] No space left on device: 'x.bin'" in files["README.md"].decode()
    )
    text = b"\n".join(content for name, content in files.items() if name != "model.safetensors").decode()
    assert [path for path in ("/home/me", "/scratch/me", str(run), "text of a cache") if path in text] == []


def test_large_files_go_through_xet_and_no_torch_is_imported(small_run: Path, hub: HubServer, tmp_path: Path) -> None:
    hub.xet_store = tmp_path / "store"
    hub.xet_store.mkdir()
    program = (
        "import sys; from finetune.cli import main; code = main(sys.argv[1:]); print('torch' in sys.modules, code)"
    )
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", program, "publish", str(small_run), "--repo", "me/my-model"],
        env=inherited | {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": WRITER, "HF_HOME": str(tmp_path / "home")},
        capture_output=True, text=True, check=False, timeout=HANG_SECONDS,
    )  # fmt: skip
    assert done.stdout.endswith(f"Published: {hub.endpoint}/me/my-model\nFalse 0\n"), done.stderr
    assert done.stderr == ""
    weights = (small_run / "model/model.safetensors").read_bytes()
    assert hub.repositories["me/my-model"].files["model.safetensors"].decode() == hashlib.sha256(weights).hexdigest()
    assert sum(file.stat().st_size for file in hub.xet_store.rglob("*") if file.is_file()) > len(weights)
    assert not hub.uploads


def test_the_published_recipe_is_valid(small_run: Path, hub: HubServer, tmp_path: Path) -> None:
    assert publish(small_run) == 0
    assert not hub.repositories["me/my-model"].private
    path = tmp_path / "recipe.yaml"
    path.write_bytes(hub.repositories["me/my-model"].files["recipe.yaml"])
    recipe, original = load_recipe(path, read_data=False), load_recipe(small_run / "recipe.yaml", read_data=False)
    assert recipe.training == original.training
    assert Path(recipe.data.train_file or "").name == "train.jsonl"
    assert recipe.data.train_rows is None


def test_texts_are_published_when_they_are_asked_for_and_removed_later(small_run: Path, hub: HubServer) -> None:
    assert publish(small_run, "--include-texts") == 0
    files = hub.repositories["me/my-model"].files
    assert files.keys() == {*FILES, "predictions.parquet"}
    rows = pq.read_table(small_run / "predictions.parquet").to_pylist()
    first = next(row["text"] for row in rows if row["split"] == "test")
    assert first in files["README.md"].decode()
    assert "train_rows" in files["recipe.yaml"].decode()
    assert publish(small_run) == 0
    assert hub.repositories["me/my-model"].files.keys() == FILES
    assert set(hub.repositories["me/my-model"].commits[1]) == {
        "README.md", "predictions.parquet", "recipe.yaml", "report.html",
    }  # fmt: skip


def test_publishing_again_makes_no_commit(small_run: Path, hub: HubServer) -> None:
    assert publish(small_run) == publish(small_run) == 0
    assert len(hub.repositories["me/my-model"].commits) == 1
    assert set(hub.uploads.values()) == {1}


def test_a_dry_run_needs_no_hub_and_no_token(
    small_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("finetune.pipeline.hub.get_token", lambda: pytest.fail("a token was read"))
    assert publish(small_run, "--dry-run") == 0
    output = capsys.readouterr().out
    listed = re.findall(r"^ *([\d,]+) bytes  (\S+)$", output, re.MULTILINE)
    assert {name for _, name in listed} == FILES
    assert (f"{(small_run / 'model/model.safetensors').stat().st_size:,}", "model.safetensors") in listed
    assert "\n# my-model\n" in output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--repo", "my-model"], "'my-model' is not the name of a repository (it has no owner); write OWNER/NAME"),
        (["--repo", "a/b/c"], "'a/b/c' is not the name of a repository (Repo id must be in the form"),
        (["--repo", "me/-x-"], "'me/-x-' is not the name of a repository (Repo id must use alphanumeric"),
        (["--repo", ""], "'' is not the name of a repository"),
        (["--language", "English"], "'English' is not a language code; write a code of ISO 639"),
        (
            ["--model", "mergd"],
            "there is no model 'mergd' to publish; choose one of model, merged, pruned, zeroed; did you mean 'merged'?",
        ),
        (["--model", "merged"], "has no weights to publish; run `finetune merge"),
    ],
)
def test_a_mistake_is_found_before_anything_is_sent(
    small_run: Path, hub: HubServer, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    for dry_run in ([], ["--dry-run"]):
        assert main(["publish", str(small_run), "--repo", "me/my-model", *options, *dry_run]) == 2
        output = capsys.readouterr()
        assert output.out == ""
        assert output.err.startswith("error: ")
        assert message in output.err
    assert hub.requests == []


def test_an_adapter_needs_a_base_on_the_hub(
    lora_run: Path, hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert publish(lora_run) == 2
    error = capsys.readouterr().err
    assert "needs its base checkpoint '" in error
    assert "which is not on the hub; run `finetune merge " in error
    run = Path(shutil.copytree(lora_run, tmp_path / "run"))
    recipe = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(re.sub("model_name_or_path: .*", "model_name_or_path: google/tiny", recipe))
    (run / "model" / "config.json").write_text("{}")
    assert publish(run) == 2
    assert "is of an earlier version: its config.json hides it" in capsys.readouterr().err
    (run / "model" / "config.json").unlink()
    assert publish(run) == 0
    files = hub.repositories["me/my-model"].files
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "google/tiny"
    card = ModelCard(files["README.md"].decode())
    assert (card.data.base_model, card.data.library_name) == ("google/tiny", "peft")
    text = b"\n".join(content for name, content in files.items() if not name.endswith(".safetensors")).decode()
    assert str(lora_run.parent.parent) not in text


def test_merged_weights_of_an_adapter_replace_it(lora_run: Path, hub: HubServer, tmp_path: Path) -> None:
    run = Path(shutil.copytree(lora_run, tmp_path / "run"))
    assert main(["merge", str(run)]) == 0
    assert publish(run, "--model", "merged") == 0
    files = hub.repositories["me/my-model"].files
    assert not {"adapter_config.json", "adapter_model.safetensors"} & files.keys()
    assert files["model.safetensors"] == (run / "merged/model.safetensors").read_bytes()
    assert "merged into plain weights" in files["README.md"].decode()


def test_a_pruned_model_is_published_with_its_own_scores(
    lora_run: Path, hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(lora_run, tmp_path / "run"))
    assert publish(run, "--model", "pruned") == 2
    assert f"pruned/model has no weights to publish; run `finetune prune {run}` first" in capsys.readouterr().err
    assert main(["prune", str(run), "--heads", "0.1,1.2"]) == 0
    result = json.loads((run / "pruned" / "pruning.json").read_text())
    for kind, folder, library in (("pruned", "model", "finetune"), ("zeroed", "zeroed", "transformers")):
        assert publish(run, "--model", kind, repo=f"me/{kind}") == 0
        files = hub.repositories[f"me/{kind}"].files
        assert files["model.safetensors"] == (run / "pruned" / folder / "model.safetensors").read_bytes()
        assert files["pruning.json"] == (run / "pruned" / "pruning.json").read_bytes()
        assert not {"scores.json", "heads.json", "report.html", "predictions.parquet"} & files.keys()
        card = ModelCard(files["README.md"].decode())
        assert card.data.library_name == library
        values = [(r.dataset_split, r.metric_value) for r in card.data.eval_results or ()]
        assert values == [(split, scores["accuracy"]) for split, scores in result["scores_after"].items()]
        assert (
            "Removed 2 heads (33%); heads per layer: 2, 2; feed-forward neurons per layer: 32, 32. Chosen by: "
            in card.text
        )
