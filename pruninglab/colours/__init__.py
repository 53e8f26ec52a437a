"""Running a network on colours: the pass that finds which channels are tied together.

Every output channel of every layer gets a colour, a number. While the network computes, a *shadow* of each activation
(a tensor of the same shape that holds colours, 0 for none) takes the same way:

    what only moves numbers (view, permute, cat, roll, …)   is done to the shadow as well, so it needs no rule;
    what works element by element (add, mul, relu, …)       makes the colours that meet one colour;
    a contraction (linear, convolution, matmul)             ends the colours it sums over, and starts new ones;
    a norm, or a reduction over positions                   lets colours pass.

Channels of one colour must go together. What a parameter holds for each channel is found on the way: its colours.
This file only watches; what is done with the colours stands in `graph` and `surgery`.
"""

from pruninglab.colours.colouring import Colouring
from pruninglab.colours.palette import Step, Work
from pruninglab.colours.shadows import along, colours_of, narrow, tight

__all__ = ["Colouring", "Step", "Work", "along", "colours_of", "narrow", "tight"]
