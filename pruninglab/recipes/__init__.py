"""Published systems by name: each is one answer to every question, a few lines on top of the rooms of the library.

    masks = recipe("obspa")(model, task, sparsity=0.5)
    small = slim(model, masks, x)

A recipe is a function `(model, task, *, sparsity=…, seed=0, …) -> Masks`. It changes the model in place: the masks are
applied, and where the system trains or repairs, that is done. What `sparsity` is a fraction of, each recipe says.
"""

from collections.abc import Callable

from pruninglab.masks import Masks
from pruninglab.naming import lookup
from pruninglab.recipes.answers import ANSWERS, Answers
from pruninglab.recipes.ap import ap
from pruninglab.recipes.atp import atp
from pruninglab.recipes.bip import bip
from pruninglab.recipes.compresso import compresso
from pruninglab.recipes.flap import flap
from pruninglab.recipes.gaprune import gaprune
from pruninglab.recipes.icbs import icbs
from pruninglab.recipes.lapp import lapp
from pruninglab.recipes.llm import ecoflap, gblm, owl, sparsegpt, wanda
from pruninglab.recipes.llm_pruner import llm_pruner
from pruninglab.recipes.loraprune import loraprune
from pruninglab.recipes.minitron import minitron
from pruninglab.recipes.obs import obs
from pruninglab.recipes.obspa import obspa
from pruninglab.recipes.perp import perp
from pruninglab.recipes.polarize import polarize
from pruninglab.recipes.precrop import precrop
from pruninglab.recipes.sap import sap
from pruninglab.recipes.shortgpt import shortgpt
from pruninglab.recipes.slicegpt import slicegpt

Recipe = Callable[..., Masks]

RECIPES: dict[str, Recipe] = {
    "ap": ap,
    "atp": atp,
    "bip": bip,
    "compresso": compresso,
    "ecoflap": ecoflap,
    "flap": flap,
    "gaprune": gaprune,
    "gblm": gblm,
    "icbs": icbs,
    "lapp": lapp,
    "llm_pruner": llm_pruner,
    "loraprune": loraprune,
    "minitron": minitron,
    "obs": obs,
    "obspa": obspa,
    "owl": owl,
    "perp": perp,
    "polarize": polarize,
    "precrop": precrop,
    "sap": sap,
    "shortgpt": shortgpt,
    "slicegpt": slicegpt,
    "sparsegpt": sparsegpt,
    "wanda": wanda,
    **ANSWERS,  # those that are one answer to each question and no more
}


def recipe(name: str) -> Recipe:
    """The recipe of this name; `RECIPES` lists them, and `pruninglab.atlas` says what each is.

    Raises:
        ValueError: there is no such recipe, or none yet, because the system is planned.
    """
    if name not in RECIPES:
        from pruninglab.atlas import SYSTEMS, planned  # made of what is here

        if name in SYSTEMS:
            raise planned(name)
    return lookup("recipe", name, RECIPES)


__all__ = [
    "ANSWERS",
    "RECIPES",
    "Answers",
    "Recipe",
    "ap",
    "atp",
    "bip",
    "compresso",
    "ecoflap",
    "flap",
    "gaprune",
    "gblm",
    "icbs",
    "lapp",
    "llm_pruner",
    "loraprune",
    "minitron",
    "obs",
    "obspa",
    "owl",
    "perp",
    "polarize",
    "precrop",
    "recipe",
    "sap",
    "shortgpt",
    "slicegpt",
    "sparsegpt",
    "wanda",
]
