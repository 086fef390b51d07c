"""The folder of images to try things out with."""

from experiments import photographs
from experiments.cli.command_line import parse
from experiments.recipes import RECIPES
from lrnet_jax.data import open_dataset


def test_it_is_a_data_set(tmp_path, capsys):
    options = parse([f"--out={tmp_path / 'a'}"], photographs.define_flags)
    photographs.main(options)
    assert "3 classes with 40 in train/ and 10 in val/, 64 x 64" in capsys.readouterr().out
    data = open_dataset("folder", data_dir=str(tmp_path / "a"), image_size=28, num_workers=0)
    assert data.class_names == ("astronaut", "chelsea", "coffee")
    assert (data.num_train, data.num_eval) == (120, 30)


def test_the_recipe_reads_it_where_its_docstring_writes_it():
    text = photographs.__doc__
    assert f"--out={RECIPES['finetune_quick'].data.data_dir}\n" in text
    assert "--config=finetune_quick\n" in text
