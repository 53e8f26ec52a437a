"""Systems that remove whole channels, so that the network becomes really smaller."""

from functools import partial

from pruninglab.atlas.system import System, combination

_channels = partial(combination, topic="channels", task="digits-cnn")
_system = partial(System, topic="channels")

SYSTEMS = (
    _channels(
        "l1_filter",
        "Pruning filters by their norm",
        claim="Without its smallest filters VGG-16 needs up to 34 and ResNet-110 up to 38 per cent fewer operations on "
        "CIFAR-10, at nearly the accuracy it had.",
        reference="H. Li et al.: Pruning filters for efficient ConvNets (ICLR 2017, arXiv 1608.08710)",
        chapter=3,
        note="The paper spares sensitive layers; here all lose the same fraction.",
    ),
    _channels(
        "slimming",
        "Network slimming",
        claim="VGG shrinks 20 times and needs five times fewer operations, once training has pressed on the scales of "
        "its norms.",
        reference="Z. Liu et al.: Learning efficient convolutional networks through network slimming (ICCV 2017, "
        "arXiv 1708.06519)",
        task="digits-resnet",
        note="The training with a penalty on the scales is left to whoever trains the network.",
    ),
    _channels(
        "taylor_filter",
        "Taylor pruning of feature maps",
        claim="Convolutions over space and time for gestures lose more than ten times of their operations, in theory, "
        "for a small drop in accuracy.",
        reference="P. Molchanov et al.: Pruning convolutional neural networks for resource efficient inference "
        "(ICLR 2017, arXiv 1611.06440)",
        chapter=3,
        note="In a few rounds, where the paper removes one filter at a time.",
    ),
    _channels(
        "taylor",
        "Taylor pruning of weights",
        claim="ResNet-101 needs 40 per cent fewer operations for 0.02 points on ImageNet.",
        reference="P. Molchanov et al.: Importance estimation for neural network pruning (CVPR 2019, arXiv 1906.10771)",
        chapter=2,
        note="The paper squares the sum over a filter's weights; here their sizes are summed.",
    ),
    _channels(
        "fpgm",
        "FPGM",
        claim="Without the filters that others can replace ResNet-110 needs 52 per cent fewer operations on CIFAR-10 "
        "and is no worse.",
        reference="Y. He et al.: Filter pruning via geometric median for deep convolutional neural networks "
        "acceleration (CVPR 2019, arXiv 1811.00250)",
        chapter=3,
        note="What has gone stays gone; the paper lets filters come back while it trains.",
    ),
    _channels(
        "hrank",
        "HRank",
        claim="By the rank of its feature maps ResNet-110 loses 58.2 per cent of its operations for 0.14 points on "
        "CIFAR-10.",
        reference="M. Lin et al.: HRank: filter pruning using high-rank feature map (CVPR 2020, arXiv 2002.10179)",
        note="Small pictures give many ties.",
    ),
    _channels(
        "relevance",
        "Pruning by explaining",
        claim="Where data are scarce, filters without relevance for the answer can go at less harm than by weights, "
        "gradients or Taylor, and without training again.",
        reference="S.-K. Yeom et al.: Pruning by explaining: a novel criterion for deep neural network pruning (2019, "
        "arXiv 1912.08881)",
    ),
    _channels(
        "beta_rank",
        "β-Rank",
        claim="On unbalanced medical pictures networks keep their quality without 58 (IDRID) or 45 per cent (ISIC) of "
        "their operations.",
        reference="M. Homayounfar et al.: Beta-Rank: a robust convolutional filter pruning method for imbalanced "
        "medical image analysis (2023, arXiv 2304.07461)",
    ),
    _channels(
        "depgraph",
        "DepGraph",
        claim="One way to find what must go together serves convolutional, recurrent, graph networks and transformers, "
        "and a norm over such groups is all it takes to choose.",
        reference="G. Fang et al.: DepGraph: towards any structural pruning (CVPR 2023, arXiv 2301.12900)",
        chapter=3,
        task="digits-resnet",
        note="Groups are found by colours; the training that presses whole groups down is left out.",
    ),
    _channels(
        "scratch",
        "Rethinking the value of network pruning",
        claim="A pruned network that is trained from new weights does as well as one that keeps its old ones: what "
        "pruning finds is the shape.",
        reference="Z. Liu et al.: Rethinking the value of network pruning (ICLR 2019, arXiv 1810.05270)",
        chapter=3,
    ),
    combination(
        "rate_distortion_channels",
        "Rate–distortion pruning of channels",
        topic="rate and distortion",
        claim="Shares of all layers, solved for together, save up to 27.9 times of ResNet-32's operations on CIFAR-10 "
        "and half of DeiT's on ImageNet without loss there.",
        reference="K. Xu et al.: Efficient distortion-minimized layerwise pruning (IEEE Transactions on Pattern "
        "Analysis and Machine Intelligence 2025)",
        chapter=6,
        task="digits-cnn",
        note="Curves are measured; the paper approximates them by second derivatives (see `gauss_newton`).",
    ),
    _system(
        name="obspa",
        title="SPA and OBSPA",
        what="`channel`",
        how_important="in which order the brain surgeon would remove a layer's inputs",
        how_much="`uniform`",
        when="`one_shot`",
        repair="the inputs that stay make up for the others, in closed form",
        claim="Any architecture from any framework can be cut, and without tuning and without real data the result is "
        "the best known.",
        reference="X. Wang et al.: Structurally prune anything: any architecture, any framework, any time (2024, "
        "arXiv 2403.18955)",
        task="digits-cnn",
    ),
    _system(
        name="precrop",
        title="PreCropping",
        what="`channel`",
        how_important="`random`: before training all channels of a layer are alike",
        how_much="layers share a budget so that the product of their densities is largest",
        when="`before_training`",
        repair="the training itself, which is left to you",
        claim="Before training it matters how much goes from each layer, not which weights, so that whole channels can "
        "go at no loss.",
        reference="Y. Cai et al.: Structured pruning is all you need for pruning CNNs at initialization (2022, "
        "arXiv 2203.02549)",
        task="digits-cnn",
        start="untrained",
        note="How densities become widths is a reconstruction.",
    ),
    _system(
        name="lapp",
        title="LAPP",
        what="`channel`",
        how_important="the norm of the filter, against a threshold of its layer that learns",
        how_much="what the thresholds leave, held to a number of operations by the loss",
        when="in the first half of the training",
        repair="the training itself",
        claim="Trained from scratch with 55.6 per cent fewer operations, ResNet-18 gains 0.21 points on ImageNet.",
        reference="P. Zhai et al.: LAPP: layer adaptive progressive pruning for compressing CNNs from scratch (2023, "
        "arXiv 2309.14157)",
        task="digits-cnn",
        start="untrained",
        note="A reconstruction, without the light bypass around each layer.",
    ),
    _system(
        name="amc",
        title="AMC",
        what="`channel`",
        how_important="`l1_filter`",
        how_much="an agent that learns by reward chooses layer after layer",
        when="`one_shot`, some hundred times",
        repair="least squares for each layer; `finetune` in the end",
        claim="With a quarter of its operations VGG-16 is 2.7 points better than with shares made by hand, and "
        "MobileNet runs 1.81 times faster on a phone for 0.1 points.",
        reference="Y. He et al.: AMC: AutoML for model compression and acceleration on mobile devices (ECCV 2018, "
        "arXiv 1802.03494)",
    ),
    _system(
        name="netadapt",
        title="NetAdapt",
        what="`channel`",
        how_important="`l2_filter`",
        how_much="of all layers the one whose cut, of a given time on the device, harms accuracy least",
        when="step by step until the time is reached",
        repair="`finetune`, shortly at each step and long in the end",
        claim="MobileNets run up to 1.7 times faster on the phone that was measured, at equal or higher accuracy.",
        reference="T.-J. Yang et al.: NetAdapt: platform-aware neural network adaptation for mobile applications "
        "(ECCV 2018, arXiv 1804.03230)",
        note="A budget of measured time is there: `prune(unit='channel', latency_ms=…)`.",
    ),
    _system(
        name="emo_pms",
        title="EMO-PMS (EMO-DIR)",
        what="`channel`",
        how_important="an evolutionary search's choice",
        how_much="parts of the network evolve on their own and are joined by what each costs the whole",
        when="generation after generation",
        repair="`finetune`; parts learn to work with each other's features",
        claim="Searching parts instead of the whole takes far fewer resources and is as good as the best known.",
        reference="R. Shang et al.: A multi-objective complex network pruning framework based on divide-and-conquer "
        "and global performance impairment ranking (2023, arXiv 2303.16212)",
    ),
    _system(
        name="metapruning",
        title="Pruning by graph metanetworks",
        what="`channel`",
        how_important="`group_l2`, after a network that reads networks has rewritten the weights",
        how_much="`global`",
        when="`one_shot`",
        repair="`finetune`, before and after",
        claim="A graph network, once trained, makes other networks easy to prune: the best known for ResNet-56, VGG-19 "
        "and ResNet-50.",
        reference="Y. Liu, X. Wang, M. Zhang: Meta pruning via graph metanetworks (2025, arXiv 2506.12041)",
    ),
    _system(
        name="ofb",
        title="Once for Both",
        what="`channel` and `head` of a vision transformer",
        how_important="a score that learns, beside the choice of how many stay",
        how_much="each module chooses among fractions, pressed to one choice by the loss",
        when="within one search",
        repair="the search itself, with masked pictures to restore",
        claim="One search, a GPU day for DeiT-S, finds what to keep and how much of it; its smallest network, of 0.9 "
        "billion operations, reaches 75.0 per cent on ImageNet.",
        reference="H. Ye et al.: Once for both: single stage of importance and sparsity search for vision transformer "
        "compression (CVPR 2024, arXiv 2403.15835)",
    ),
)
