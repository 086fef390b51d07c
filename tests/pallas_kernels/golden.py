"""The float64 golden cases: an independent implementation of Eqns. 1 to 5, gradients included."""

import dataclasses
import pathlib
from typing import Any

import numpy as np

FOLDER = pathlib.Path(__file__).parent.parent / "golden"
NAMES = sorted(path.stem for path in FOLDER.glob("*.npz"))
SIMILARITY = {
    "sqdiff": "squared_difference",
    "absdiff": "absolute_difference",
    "mul": "multiplication",
}


@dataclasses.dataclass(frozen=True)
class Golden:
    """One case. `results` and `gross` are keyed out, dq, dk, dv, dprior."""

    inputs: tuple[np.ndarray, ...]  # query, key, value, prior (G,Kh,Kw)
    cotangent: np.ndarray
    options: dict[str, Any]  # keyword arguments of local_relation
    results: dict[str, np.ndarray]
    gross: dict[str, float]
    tol64: float
    tol32: float


def load(name: str) -> Golden:
    """Reads a case and translates its names into ours."""
    case = np.load(FOLDER / f"{name}.npz")
    kernel_size = tuple(int(k) for k in case["kernel"])
    groups = case["q"].shape[3]
    prior = case["prior"].reshape(groups, *kernel_size)
    results = {name: case[name] for name in ("out", "dq", "dk", "dv", "dprior")}
    results["dprior"] = results["dprior"].reshape(prior.shape)
    return Golden(
        inputs=(case["q"], case["k"], case["v"], prior),
        cotangent=case["cot"],
        options={
            "kernel_size": kernel_size,
            "channels_per_group": int(case["m"]),
            "stride": int(case["stride"]),
            "dilation": int(case["dilation"]),
            "similarity": SIMILARITY[str(case["phi"])],
            "scale": float(case["scale"]),
            "normalization": str(case["normalize"]),
        },
        results=results,
        gross={name: float(case[f"gross_{name}"]) for name in results},
        tol64=float(case["tol64"]),
        tol32=float(case["tol32"]),
    )
