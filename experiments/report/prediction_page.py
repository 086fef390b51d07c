"""A page of predictions: each picture with its bars, and on request what the network looks at."""

import contextlib
import pathlib
from collections.abc import Iterator

import numpy as np

from experiments.config import ConfigError
from experiments.report.drawing import require_matplotlib
from experiments.report.page import (
    CARDS_BEGIN,
    CARDS_END,
    Page,
    bars,
    card,
    drawing,
    escape,
    heading,
    open_page,
    picture,
)
from experiments.report.paper_figures import draw_maps, draw_priors
from experiments.report.prediction_text import printable
from experiments.run.predictions import Prediction
from lrnet_jax import Classifier, visualize

MAPS_NOTE = (
    "Beside each image are keys and queries of the last local relation of each stage, of the group "
    "g whose keys vary most on this image. Key and query share a scale, because the similarity "
    "compares their values."
)
PRIORS_NOTE = (
    "Weights of the same layers where all pixels look alike, for groups from the sharpest to the "
    "flattest. The dot is the output pixel."
)


class PredictionPage:
    """A page that grows by one image at a time; `open_predictions` makes it."""

    def __init__(self, page: Page, classifier: Classifier, *, maps: bool) -> None:
        self._page = page
        self._classifier = classifier
        self._maps = maps
        self._unreadable: list[str] = []

    def add(self, prediction: Prediction) -> None:
        """Adds an image, or keeps the reason why it cannot be read for the end of the page."""
        if not isinstance(prediction.pixels, np.ndarray):
            self._unreadable.append(str(prediction.pixels))
            return
        name, best = printable(prediction.path), prediction.guesses[0].name
        parts = [
            picture(prediction.pixels, f"{name}, taken for {best}"),
            bars([(guess.name, guess.probability) for guess in prediction.guesses]),
        ]
        if self._maps:
            parts.append(self._draw_maps(prediction.pixels, name))
        self._page.write(card(name, *parts, wide=self._maps))

    def finish(self) -> None:
        """Ends the images, and adds the priors and the files that cannot be read."""
        self._page.write(CARDS_END)
        if self._maps:
            figure = draw_priors(self._classifier.model)
            if figure is not None:
                self._page.write(heading("Geometric priors", PRIORS_NOTE))
                self._page.write(drawing(figure, "geometric priors of each stage"))
        if self._unreadable:
            self._page.write(heading("Not read"))
            for message in self._unreadable:
                self._page.write(card(message))

    def _draw_maps(self, pixels: np.ndarray, name: str) -> str:
        preprocessing = self._classifier.preprocessing
        figure = draw_maps(
            self._classifier.model, pixels[None], preprocessing.mean, preprocessing.std
        )
        return drawing(figure, f"keys and queries of each stage for {name}")


@contextlib.contextmanager
def open_predictions(
    path: pathlib.Path, classifier: Classifier, run: str, *, maps: bool
) -> Iterator[PredictionPage]:
    """Writes a page of predictions. Nothing is left of it if the context ends with an exception.

    Args:
      path: the file.
      classifier: whose predictions they are.
      run: where it is from.
      maps: whether each image has its key and query maps, and the page the geometric priors.

    Raises:
      ConfigError: the file cannot be written; or maps cannot be drawn, because matplotlib is not
        installed or the network has no local relations.
    """
    metadata, model = classifier.metadata, classifier.model
    if maps:
        require_matplotlib("; or leave --maps out")
        if not visualize.local_relations(model):
            raise ConfigError(
                f"--maps: {run} holds {metadata['network']}, which has no local relation layers"
            )
    size = classifier.preprocessing.image_size
    lead = (
        f"{metadata['network']} after step {metadata['step']} of {run}. It sees {size} x {size} "
        f"pixels, as shown, and knows {model.num_classes} classes."
    )
    with open_page(path, "Predictions", lead) as page:
        if maps:
            page.write(f'<p class="note">{escape(MAPS_NOTE)}</p>')
        page.write(CARDS_BEGIN)
        predictions = PredictionPage(page, classifier, maps=maps)
        yield predictions
        predictions.finish()
