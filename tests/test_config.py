"""Configuration files: what they say, and one clear error for what they should not say."""

import pytest

from consilience.config import Config, read_config
from consilience.errors import SchemaError

MODEL = '[model]\nfamily = "SharedGPLVM"\nlatent_dim = 3\n'
MODALITY = '[schema.modalities.x]\nshape = [4]\nunit = "Jy"\n'


def write(tmp_path, text, name="config.toml"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_reads_family_training_and_schema(tmp_path):
    found = read_config(write(tmp_path, f'{MODEL}[train]\nmax_steps = 7\n[train.weights]\n"kl/*" = 0.5\n{MODALITY}'))
    assert isinstance(found, Config)
    assert found.family.latent_dim == 3
    assert found.train.max_steps == 7
    assert found.train.weights == {"kl/*": 0.5}
    assert found.schema is not None
    assert found.schema["x"].shape == (4,)


def test_a_schema_file_is_looked_for_beside_the_configuration(tmp_path):
    write(tmp_path, '[modalities.y]\nshape = [2]\n', "schema.toml")
    assert read_config(write(tmp_path, f'schema = "schema.toml"\n{MODEL}')).schema.names == ("y",)


def test_defaults(tmp_path):
    found = read_config(write(tmp_path, MODEL))
    assert found.schema is None
    assert found.train.batch_size == 128


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (MODEL.replace("latent_dim", "latent_dims"), r"'latent_dims'.*'latent_dim'"),
        (f"{MODEL}[train]\nmax_step = 3\n", r"\[train\].*'max_step'.*'max_steps'"),
        (f"{MODEL}[trian]\nmax_steps = 3\n", r"'trian'.*'train'"),
        (MODEL.replace("GPLVM", "GPLVMs"), r"'SharedGPLVMs'.*'SharedGPLVM'"),
        (MODEL + MODALITY.replace("unit", "units"), r"\[schema\].*units'.*'unit'"),
        (MODEL.replace("= 3", "= 0"), "latent_dim"),
        (f"train = 3\n{MODEL}", r"a table \[train\]"),
        ("[train]\n", r"a table \[model\]; got none"),
        ("[model\n", "Expected a TOML file"),
        (f'schema = "nowhere.toml"\n{MODEL}', "nowhere.toml"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, expected):
    with pytest.raises(SchemaError, match=expected):
        read_config(write(tmp_path, text))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SchemaError, match="nothing.toml"):
        read_config(tmp_path / "nothing.toml")
