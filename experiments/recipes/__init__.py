"""Named configurations, one module a family; each is the lab note of its experiment.

`RECIPES` maps a name to its configuration. A recipe is found under the name that stands in it.
"""

from experiments.config import Config
from experiments.recipes import imagenet, paper_tables, quickstart, study

RECIPES: dict[str, Config] = {
    config.recipe: config
    for family in (imagenet, quickstart, paper_tables, study)
    for config in family.CONFIGS
}
