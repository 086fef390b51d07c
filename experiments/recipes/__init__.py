"""Named configurations; each module holds one family and is the lab note of its experiments.

`RECIPES` maps the name of each recipe (`Config.recipe`) to its configuration.
"""

from experiments.config import Config
from experiments.recipes import finetune, imagenet, paper_tables, quickstart, study

RECIPES: dict[str, Config] = {
    config.recipe: config
    for family in (imagenet, quickstart, finetune, paper_tables, study)
    for config in family.CONFIGS
}
