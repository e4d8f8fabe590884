"""What the file says about itself, as the readers of such files look for it."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from lifelong_core.adapters.spec import AdapterSpec
from lifelong_core.errors import InputError
from lifelong_core.sharing import ExportInfo, export_lora
from lifelong_core.state import LifelongState

SPEC = AdapterSpec(rank=1, alpha=0.5, targets=("attn2.to_k",))


def metadata_of(
    state: LifelongState, folder: Path, info: ExportInfo, preview: torch.Tensor | None = None
) -> tuple[dict[str, str], Path]:
    path = export_lora(state, folder, folder / "emb", "mine", info=info, preview=preview).lora
    with safe_open(path, framework="pt") as handle:
        return handle.metadata(), path


def test_every_value_is_text_and_nothing_private_is_in_it(make_state, tmp_path: Path) -> None:
    info = ExportInfo("v_prediction", base_name="C:\\Users\\ann\\models\\demo.safetensors")
    metadata, path = metadata_of(make_state(spec=SPEC), tmp_path, info)
    assert metadata["ss_sd_model_name"] == "demo.safetensors"
    raw = path.read_bytes()
    for private in (b"ann", b"/home", b"Users", str(tmp_path).encode()):
        assert private not in raw
    assert all(isinstance(value, str) and value for value in metadata.values())


def test_all_concepts_are_under_one_key(make_state, tmp_path: Path) -> None:
    metadata, _ = metadata_of(make_state(spec=SPEC), tmp_path, ExportInfo("v_prediction"))
    assert json.loads(metadata["ss_tag_frequency"]) == {
        "concepts": {"sks-1 dog": 1, "Ducky rubber duck": 1}
    }
    subsets = json.loads(metadata["ss_datasets"])[0]["subsets"]
    assert [subset["class_tokens"] for subset in subsets] == ["sks-1 dog", "Ducky rubber duck"]
    assert metadata["modelspec.trigger_phrase"] == "sks-1 dog, Ducky rubber duck"
    assert "embedding:sks-1 dog, embedding:Ducky rubber duck" in metadata["modelspec.usage_hint"]


@pytest.mark.parametrize(
    ("family", "prediction", "base", "architecture", "size", "v2"),
    [
        ("demo", "v_prediction", "lifelong_demo", "lifelong-demo/lora", "128x128", "False"),
        ("sd1", "epsilon", "sd_1.5", "stable-diffusion-v1/lora", "512x512", "False"),
        ("sd2", "epsilon", "sd_2.1_512", "stable-diffusion-v2-512/lora", "512x512", "True"),
        (
            "sd2", "v_prediction", "sd_2.1_768_v", "stable-diffusion-v2-768-v/lora",
            "768x768", "True",
        ),
        (
            "sdxl", "epsilon", "sdxl_base_v1-0", "stable-diffusion-xl-v1-base/lora",
            "1024x1024", "False",
        ),
    ],
)  # fmt: skip
def test_base_model(
    make_state, tmp_path: Path, family: str, prediction: str, base: str, architecture: str,
    size: str, v2: str,
) -> None:  # fmt: skip
    metadata, _ = metadata_of(make_state(family, SPEC), tmp_path, ExportInfo(prediction))
    assert metadata["ss_base_model_version"] == base
    assert metadata["modelspec.architecture"] == architecture
    assert metadata["modelspec.resolution"] == size
    assert metadata["ss_v2"] == v2
    expected = "v" if prediction == "v_prediction" else "epsilon"
    assert metadata["modelspec.prediction_type"] == expected
    assert metadata["lifelong.base_fingerprint"] == f"{family}-v-0123"


def test_training_values(make_state, tmp_path: Path) -> None:
    metadata, path = metadata_of(make_state(spec=SPEC), tmp_path, ExportInfo("v_prediction"))
    assert metadata["ss_network_module"] == "networks.lora"
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("1", "0.5")
    assert metadata["ss_output_name"] == path.stem
    assert (metadata["ss_max_train_steps"], metadata["ss_seed"]) == ("200", "7")


def test_hash_is_that_of_the_bytes_after_the_header(make_state, tmp_path: Path) -> None:
    metadata, path = metadata_of(make_state(spec=SPEC), tmp_path, ExportInfo("v_prediction"))
    raw = path.read_bytes()
    digest = hashlib.sha256(raw[8 + int.from_bytes(raw[:8], "little") :]).hexdigest()
    assert metadata["sshs_model_hash"] == digest
    assert metadata["modelspec.hash_sha256"] == f"0x{digest}"


def test_thumbnail_shows_the_whole_preview(make_state, tmp_path: Path) -> None:
    preview = torch.zeros(3, 64, 256)
    preview[0, :, :40] = 1.0
    metadata, _ = metadata_of(make_state(spec=SPEC), tmp_path, ExportInfo("v_prediction"), preview)
    kind, _, data = metadata["modelspec.thumbnail"].partition(",")
    assert kind == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert image.size == (256, 256)
        red, black, white = (image.getpixel(place) for place in ((10, 128), (200, 128), (9, 9)))
    assert red[0] > 230 and red[1] < 30 and max(black) < 30 and min(white) > 230


def test_given_and_left_out_values(make_state, tmp_path: Path) -> None:
    state = make_state(spec=SPEC)
    plain, _ = metadata_of(state, tmp_path / "a", ExportInfo("v_prediction"))
    for key in ("license", "author", "thumbnail"):
        assert f"modelspec.{key}" not in plain
    assert "ss_sd_model_name" not in plain and plain["modelspec.date"].startswith("2")
    info = ExportInfo(
        "v_prediction", title="My pets", description="Both.", author="Ann", license="MIT",
        tags=("pets", "dog"), date="2026-01-02",
    )  # fmt: skip
    given, path = metadata_of(state, tmp_path / "b", info)
    assert given["modelspec.title"] == "My pets" and given["modelspec.description"] == "Both."
    assert given["modelspec.author"] == "Ann" and given["modelspec.license"] == "MIT"
    assert given["modelspec.tags"] == "dog, rubber duck, pets"
    assert given["modelspec.date"] == "2026-01-02"
    assert path.stem == plain["ss_output_name"], "the name is of the weights, not of the words"


def test_a_state_without_concepts(make_state, tmp_path: Path) -> None:
    metadata, _ = metadata_of(make_state(spec=SPEC, nouns={}), tmp_path, ExportInfo("epsilon"))
    assert json.loads(metadata["ss_tag_frequency"]) == {"concepts": {}}
    assert "modelspec.trigger_phrase" not in metadata and "modelspec.usage_hint" not in metadata


def test_unknown_prediction_type_is_refused() -> None:
    with pytest.raises(InputError, match="epsilon"):
        ExportInfo("flow")
