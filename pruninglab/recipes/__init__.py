"""Published systems by name: each is one answer to every question, a few lines on top of the rooms of the library.

    masks = recipe("obspa")(model, task, sparsity=0.5)
    small = slim(model, masks, x)

A recipe is a function `(model, task, *, sparsity=…, seed=0, …) -> Masks`. It changes the model in place: the masks are
applied, and where the system trains or repairs, that is done. What `sparsity` is a fraction of, each recipe says.
"""

from collections.abc import Callable

from pruninglab.masks import Masks
from pruninglab.naming import lookup
from pruninglab.recipes.ap import ap
from pruninglab.recipes.bip import bip
from pruninglab.recipes.icbs import icbs
from pruninglab.recipes.lapp import lapp
from pruninglab.recipes.obspa import obspa
from pruninglab.recipes.polarize import polarize
from pruninglab.recipes.precrop import precrop

Recipe = Callable[..., Masks]

RECIPES: dict[str, Recipe] = {
    "ap": ap,
    "bip": bip,
    "icbs": icbs,
    "lapp": lapp,
    "obspa": obspa,
    "polarize": polarize,
    "precrop": precrop,
}


def recipe(name: str) -> Recipe:
    """The recipe of this name; `RECIPES` lists them.

    Raises:
        ValueError: there is no such recipe.
    """
    return lookup("recipe", name, RECIPES)


__all__ = ["RECIPES", "Recipe", "ap", "bip", "icbs", "lapp", "obspa", "polarize", "precrop", "recipe"]
