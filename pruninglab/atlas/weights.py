"""Systems that remove single weights of a trained network: by size, by curvature, by what they do to the output."""

from functools import partial

from pruninglab.atlas.system import System, combination

_weights = partial(combination, topic="single weights", task="digits-mlp")

SYSTEMS = (
    _weights(
        "magnitude",
        "Magnitude pruning",
        claim="AlexNet needs a ninth and VGG-16 a thirteenth of its weights for its accuracy on ImageNet.",
        reference="S. Han, J. Pool, J. Tran, W. Dally: Learning both weights and connections for efficient neural "
        "networks (NIPS 2015, arXiv 1506.02626)",
        chapter=2,
        note="The paper chooses each layer's threshold by its sensitivity; here all layers lose the same fraction.",
    ),
    _weights(
        "global_mp",
        "Global magnitude pruning with a minimum threshold",
        claim="Ranking all weights together by size beats more complex methods at every sparsity, and a floor keeps it "
        "from emptying layers.",
        reference="M. Gupta et al.: Is complexity required for neural network pruning? A case study on global "
        "magnitude pruning (2022, arXiv 2209.14624)",
        chapter=2,
    ),
    _weights(
        "gradual",
        "Gradual magnitude pruning",
        claim="A large sparse network is more accurate than a small dense one of the same size, with up to ten times "
        "fewer weights at little loss.",
        reference="M. Zhu, S. Gupta: To prune, or not to prune: exploring the efficacy of pruning for model "
        "compression (2017, arXiv 1710.01878)",
        chapter=2,
    ),
    _weights(
        "lamp",
        "LAMP",
        claim="One rescaled score, ranked over all layers, finds their shares without a knob, and does at least as "
        "well as rules made by hand.",
        reference="J. Lee et al.: Layer-adaptive sparsity for the magnitude-based pruning (ICLR 2021, "
        "arXiv 2010.07611)",
        chapter=2,
    ),
    _weights(
        "nm",
        "2:4 sparsity",
        claim="Networks of which two of every four weights go keep their accuracy if their training is done again, and "
        "sparse tensor cores then multiply twice as fast.",
        reference="A. Mishra et al.: Accelerating sparse deep neural networks (2021, arXiv 2104.08378)",
        chapter=8,
        note="`replace(ANSWERS['nm'], unit='4:8')` is another pattern. No processor here is faster for it.",
    ),
    System(
        name="deep_compression",
        title="Deep Compression",
        topic="single weights",
        what="`weight`, then the bits of those that stay",
        how_important="`magnitude`",
        how_much="layer by layer",
        when="`iterative`; then shared values, then Huffman codes",
        repair="`finetune`, of the shared values too",
        claim="AlexNet shrinks 35 times, from 240 to 6.9 MB, and VGG-16 49 times, without loss of accuracy.",
        reference="S. Han, H. Mao, W. Dally: Deep compression (ICLR 2016, arXiv 1510.00149)",
    ),
    combination(
        "rate_distortion",
        "Rate–distortion pruning",
        topic="rate and distortion",
        claim="Damages of layers add up, so that the best shares of all layers can be solved for: up to 4.7 points "
        "more on ImageNet than with other shares.",
        reference="K. Xu et al.: Efficient joint optimization of layer-adaptive weight pruning in deep neural networks "
        "(ICCV 2023, arXiv 2308.10438)",
        chapter=6,
        task="digits-cnn",
        note="Damage is the mean over samples, not the worst case, and the shares are solved for exactly.",
    ),
    System(
        name="lpvit",
        title="LPViT",
        topic="rate and distortion",
        what="`block` of weights of a vision transformer",
        how_important="`taylor`, the mean over a block",
        how_much="`rate_distortion`, from second-order curves, with a term for power",
        when="`one_shot`",
        repair="`finetune`, with distillation",
        claim="On dedicated hardware up to 3.93 times and on GPUs up to 1.79 times faster, at little loss on ImageNet.",
        reference="K. Xu et al.: LPViT: low-power semi-structured pruning for vision transformers (ECCV 2024, "
        "arXiv 2407.02068)",
    ),
    System(
        name="dm3d",
        title="DM3D",
        topic="rate and distortion",
        what="`weight` of a detector for three dimensions",
        how_important="`magnitude`",
        how_much="`rate_distortion`, with the damage to boxes and to classes",
        when="`one_shot`",
        repair="`finetune`",
        claim="Detectors in point clouds lose most of their operations without loss of precision if all layers' shares "
        "are chosen together.",
        reference="K. Xu et al.: DM3D: distortion-minimized weight pruning for lossless 3D object detection (2024, "
        "arXiv 2407.02098)",
    ),
    System(
        name="spdy",
        title="SPDY",
        topic="rate and distortion",
        what="`weight`",
        how_important="any layer-wise method's",
        how_much="the least sum of learned layer sensitivities within a measured time, by a table in buckets",
        when="`one_shot` or `gradual`",
        repair="`finetune`",
        claim="Shares of layers that are searched for meet a speed-up that was asked for, at higher accuracy than "
        "shares of other rules.",
        reference="E. Frantar, D. Alistarh: SPDY: accurate pruning with speedup guarantees (ICML 2022, "
        "arXiv 2201.13096)",
    ),
    combination(
        "obd",
        "Optimal brain damage",
        topic="curvature",
        claim="A network that reads handwritten digits needs a quarter of its parameters.",
        reference="Y. LeCun, J. Denker, S. Solla: Optimal brain damage (NIPS 1989)",
        chapter=7,
        task="digits-mlp",
        note="The diagonal of the second derivative is that of the empirical Fisher.",
    ),
    System(
        name="obs",
        title="Optimal brain surgeon",
        topic="curvature",
        what="`weight`",
        how_important="`obs`, on weights as updated so far",
        how_much="`uniform`",
        when="one weight after the other, the cheapest first",
        repair="all other weights make up for each that goes, in closed form",
        claim="On MONK's three problems 90, 76 and 62 per cent of the weights go that decay leaves, without training "
        "again.",
        reference="B. Hassibi, D. Stork: Second order derivatives for network pruning: optimal brain surgeon "
        "(NIPS 1992)",
        chapter=7,
        task="digits-mlp",
        note="Layer after layer, each with the second derivative of its own squared error; the paper's is that of the "
        "whole network's loss, and its weights compete across layers.",
    ),
    combination(
        "woodfisher",
        "WoodFisher",
        topic="curvature",
        claim="The Fisher's inverse, built sample by sample in blocks, prunes ResNet-50 and MobileNet on ImageNet "
        "better than size does, at once and gradually.",
        reference="S. P. Singh, D. Alistarh: WoodFisher: efficient second-order approximation for neural network "
        "compression (NeurIPS 2020, arXiv 2004.14340)",
        chapter=7,
        task="digits-mlp",
        note="The score only: the paper also updates the weights of the block that stay.",
    ),
    System(
        name="cbs",
        title="Combinatorial brain surgeon",
        topic="curvature",
        what="`weight`",
        how_important="what a set of weights costs together, by the Fisher",
        how_much="`global`, or the same from each block",
        when="`one_shot`, by exchanging single weights",
        repair="the others make up for all that go, in closed form",
        claim="Weights that are chosen together cost less than the same number chosen one by one.",
        reference="X. Yu, T. Serra, S. Ramalingam, S. Zhe: The combinatorial brain surgeon (ICML 2022, "
        "arXiv 2203.04466)",
        chapter=7,
        note="For a block there are `curvature.cbs_select` and `curvature.cbs_update`.",
    ),
    System(
        name="icbs",
        title="iCBS",
        topic="curvature",
        what="`weight`",
        how_important="what a block of weights costs together, by gradient and Fisher of one batch",
        how_much="`uniform`, kept as it is",
        when="after `one_shot`, block after block",
        repair="nothing",
        claim="Masks that are improved block by block beat Wanda's on Mistral and DeiT at equal density, although few "
        "weights are ever looked at.",
        reference="G. Rosenberg et al.: Scalable iterative pruning of large language and vision models using block "
        "coordinate descent (2024, arXiv 2411.17796)",
        chapter=7,
        task="digits-mlp",
    ),
)
